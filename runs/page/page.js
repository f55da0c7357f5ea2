"use strict";
// Theme first, before anything is painted; tabs, tables and charts once the page is there.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* a file may be allowed no memory */ }
  const applyTheme = () => { root.dataset.theme = chosen ?? (dark.matches ? "dark" : "light"); };
  applyTheme();
  root.classList.add("scripted");

  const visible = (element) => element.getClientRects().length > 0;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim() || name;

  // Every colour of a figure is the name of a CSS property.
  function coloured(value) {
    if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
    if (Array.isArray(value)) return value.some((item) => typeof item !== "number") ? value.map(coloured) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
  }

  function merged(below, above) {
    const result = { ...below };
    for (const [key, value] of Object.entries(above)) {
      const plain = value !== null && typeof value === "object" && !Array.isArray(value);
      result[key] = plain ? merged(result[key] ?? {}, value) : value;
    }
    return result;
  }

  function commonLayout(layout) {
    const axis = {
      gridcolor: "--rule", linecolor: "--rule", zerolinecolor: "--faint", automargin: true, ticks: "", zeroline: false,
      tickfont: { color: "--muted" }, title: { font: { color: "--muted", size: 13 }, standoff: 10 },
    };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
    return {
      ...Object.fromEntries(axes.map((key) => [key, axis])),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: "--ink" },
      margin: { l: 48, r: 12, t: 12, b: 44 },
      showlegend: false, // the page has its own, which wraps, prints and takes the keyboard
      hoverlabel: { bgcolor: "--paper", bordercolor: "--rule", font: { color: "--ink", size: 13 }, align: "left", namelength: -1 },
      hovermode: "closest", dragmode: "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "--faint", activecolor: "--ink" },
    };
  }

  const states = new WeakMap(); // of each chart: its figure, its hidden groups, and as what it stands drawn

  function stateOf(chart) {
    if (!states.has(chart)) {
      const figure = JSON.parse(chart.querySelector("script").textContent);
      states.set(chart, { figure, hidden: new Set(), drawn: "" });
      addLegend(chart, figure.data);
    }
    return states.get(chart);
  }

  function draw(chart) {
    const plot = chart.querySelector(".plot");
    const state = stateOf(chart);
    const key = [plot.clientWidth, root.dataset.theme, ...state.hidden].join();
    if (state.drawn === key) return;
    state.drawn = key;
    const { data, layout, narrow } = state.figure;
    const own = plot.clientWidth < 560 ? merged(layout, narrow) : layout;
    plot.style.height = `${own.height}px`;
    const shown = data.map((trace) => ({ ...trace, visible: !state.hidden.has(trace.legendgroup) }));
    const whole = { ...coloured(merged(commonLayout(layout), own)), width: plot.clientWidth };
    Plotly.react(plot, coloured(shown), whole, { displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] });
  }

  function addLegend(chart, data) {
    const legend = chart.querySelector(".legend");
    const names = new Set();
    for (const trace of data) {
      const name = trace.legendgroup;
      if (name === undefined || trace.showlegend === false || names.has(name)) continue;
      names.add(name);
      const entry = document.createElement("button");
      const swatch = document.createElement("i");
      const filled = trace.fill !== undefined;
      swatch.className = filled ? "fill" : trace.mode === "markers" ? "dot" : "line";
      const value = `var(${filled ? trace.fillcolor : trace.mode === "markers" ? trace.marker.color : trace.line.color})`;
      if (swatch.className === "line") swatch.style.borderTop = `3px ${trace.line.dash === "solid" ? "solid" : "dotted"} ${value}`;
      else swatch.style.background = value;
      if (filled) swatch.style.opacity = 2 * trace.opacity;
      entry.type = "button";
      entry.setAttribute("aria-pressed", "true");
      entry.append(swatch, name);
      entry.addEventListener("click", () => toggle(chart, [name]));
      entry.addEventListener("dblclick", () => toggle(chart, [...names].filter((other) => other !== name)));
      entry.title = "click to hide or show; double click for this one alone";
      legend.append(entry);
    }
  }

  // All of them become hidden, or if they are so already, shown.
  function toggle(chart, names) {
    const { hidden } = states.get(chart);
    const hide = names.some((name) => !hidden.has(name));
    for (const name of names) hidden[hide ? "add" : "delete"](name);
    for (const entry of chart.querySelectorAll(".legend button")) {
      entry.setAttribute("aria-pressed", String(!hidden.has(entry.textContent)));
    }
    draw(chart);
  }

  function drawVisible() {
    for (const chart of document.querySelectorAll(".chart")) if (visible(chart)) draw(chart);
  }

  function showTab() {
    const sections = [...document.querySelectorAll("main > section")];
    const wanted = sections.find((section) => `#${section.id}` === location.hash) ?? sections[0];
    for (const section of sections) section.classList.toggle("shown", section === wanted);
    for (const link of document.querySelectorAll("nav a")) {
      if (wanted && link.hash === `#${wanted.id}`) {
        link.setAttribute("aria-current", "page");
        const row = link.parentElement;
        row.scrollLeft = Math.max(0, link.offsetLeft - row.offsetLeft - row.clientWidth / 2);
      } else link.removeAttribute("aria-current");
    }
    const nav = document.querySelector("nav");
    if (nav && scrollY > nav.offsetTop && wanted) scrollTo(0, document.querySelector("main").offsetTop - nav.offsetHeight);
    drawVisible();
  }

  function sortBy(header) {
    const body = header.closest("table").tBodies[0];
    const falling = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const valueOf = (row) => {
      const cell = row.cells[header.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
    };
    const missing = (value) => value === "–" || value === "";
    const compare = (a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // last, either way
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "zh");
      return falling ? -order : order;
    };
    const rows = [...body.rows].map((row) => [valueOf(row), row]);
    body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
  }

  function showPanel(select) {
    const panels = [...select.closest(".choice").querySelectorAll(".panels > div")];
    panels.forEach((panel, number) => { panel.hidden = number !== select.selectedIndex; });
    drawVisible();
  }

  function nameTheme() {
    document.querySelector("#theme").textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  }

  function changeTheme(theme) {
    chosen = theme;
    applyTheme();
    nameTheme();
    drawVisible();
  }

  addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("#theme");
    button.hidden = false;
    button.addEventListener("click", () => {
      changeTheme(root.dataset.theme === "dark" ? "light" : "dark");
      try { localStorage.setItem("theme", chosen); } catch { /* then it is forgotten */ }
    });
    nameTheme();
    dark.addEventListener("change", () => changeTheme(chosen));
    for (const header of document.querySelectorAll("thead button")) {
      header.addEventListener("click", () => sortBy(header.closest("th")));
    }
    for (const select of document.querySelectorAll("select")) {
      select.addEventListener("change", () => showPanel(select));
      showPanel(select);
    }
    addEventListener("hashchange", showTab);
    showTab();
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(drawVisible); } });
    root.dataset.ready = "true";
  });

  let before = null;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("printing");
    drawVisible();
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = before;
    root.classList.remove("printing");
    drawVisible();
  });
})();
