"""The page in a real browser: Debian's chromium or the like, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from runs.comparison import compare_runs
from runs.page import write_page
from tests.runs.made import cls_run, failed_run, forecast_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
EVIL = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a page; at the end, it has said nothing, and asked no other place for anything."""
    said: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1200, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())

        def record(route: Any) -> None:
            if route.request.url.startswith(("data:", "blob:", path.as_uri())):
                route.continue_()
            else:
                said.append(f"asked for {route.request.url}")
                route.abort()

        page.route("**/*", record)
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty runs of both tasks, from models with long labels among them, and a failed one."""
    folder = tmp_path_factory.mktemp("页 one")
    runs = [cls_run(folder / "svm", "tfidf_svm", texts=EVIL), forecast_run(folder / "naive", "seasonal_naive")]
    for seed in range(3):
        for model in ("rnn", "gru", "bilstm"):
            runs.append(cls_run(folder / f"{model}{seed}", model, seed, classes=("书籍", "酒店", "a <b>& b</b>")))
            runs.append(forecast_run(folder / f"f_{model}{seed}", model, seed, quantiles=model == "gru"))
    runs.append(failed_run(folder / "broken", EVIL[0]))
    write_page(folder / "report.html", compare_runs(runs))
    return folder / "report.html"


def charts(page: Page) -> list[int]:
    """Of the charts that are visible, how many traces each has drawn."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.chart')].filter(chart => chart.getClientRects().length).map(
            chart => chart.querySelectorAll('.plot .trace, .plot .hm image, .plot .heatmaplayer image').length)"""
    )


def test_the_page_opens_with_its_charts(opened: Open, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", compare_runs([cls_run(tmp_path / "a"), cls_run(tmp_path / "b", "tfidf_svm")]))
    page = opened(tmp_path / "report.html")
    assert page.title() == "Comparison of gru and tfidf_svm"
    assert charts(page) == [4]


@pytest.mark.slow
def test_every_chart_of_every_tab_is_drawn_when_it_is_shown(report: Path, opened: Open) -> None:
    page = opened(report)
    seen = 0
    for link in page.query_selector_all("nav a"):
        link.click()
        page.wait_for_selector(f"section.shown{link.get_attribute('href')}")
        drawn = charts(page)
        assert all(traces > 0 for traces in drawn)
        seen += len(drawn)
        sections = page.query_selector_all("main > section")
        assert [f"#{each.get_attribute('id')}" for each in sections if each.is_visible()] == [
            link.get_attribute("href")
        ]
    assert seen > 12
    assert page.evaluate("() => [...document.querySelectorAll('.choice')].length") == 2


@pytest.mark.slow
def test_a_link_to_a_tab_opens_it(report: Path, opened: Open) -> None:
    page = opened(report)
    page.goto(report.as_uri() + "#forecast-windows")
    page.reload()
    page.wait_for_function("document.documentElement.dataset.ready")
    assert page.is_visible("#forecast-windows")
    assert not page.is_visible("#cls-scores")
    assert charts(page)[0] > 6


@pytest.mark.slow
def test_twenty_runs_are_open_within_three_seconds_of_the_processor(report: Path, opened: Open) -> None:
    page = opened(report)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # whatever else the machine is doing
    page.reload()
    page.wait_for_function("document.documentElement.dataset.ready")
    assert charts(page)[0] > 0
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["TaskDuration"] < 3


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_it_is_switched(scheme: Any, report: Path, opened: Open) -> None:
    page = opened(report, color_scheme=scheme)

    def look() -> tuple[str, str, str]:
        tick = "getComputedStyle(document.querySelector('.xtick text')).fill"
        return page.evaluate(
            f"[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor, {tick}]"
        )

    other = {"light": "dark", "dark": "light"}[scheme]
    before = look()
    assert before[0] == scheme
    page.click("#theme")
    after = look()
    assert after[0] == other
    assert before[1] != after[1]
    assert before[2] != after[2]
    page.reload()
    page.wait_for_function("document.documentElement.dataset.ready")
    assert look() == after  # it is remembered


@pytest.mark.slow
def test_a_hover_says_the_counts(report: Path, opened: Open) -> None:
    page = opened(report)
    page.click("nav a[href='#cls-mistakes']")
    page.select_option("#cls-mistakes select", "gru")
    area = page.locator("#cls-mistakes .panel:not([hidden]) .nsewdrag").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] / 6, area["y"] + area["height"] / 6)
    page.wait_for_selector("#cls-mistakes .hovertext")
    text = page.text_content("#cls-mistakes .hovertext") or ""
    assert "书籍, answered 书籍" in text
    assert " of 90 (" in text  # three seeds of thirty


@pytest.mark.slow
def test_a_head_sorts_its_column_both_ways(report: Path, opened: Open) -> None:
    page = opened(report)
    for head, column in (("parameters", 7), ("model", 0)):
        button = page.locator("#cls-scores thead button", has_text=head)
        orders = []
        for _ in range(2):
            button.click()
            cells = page.locator(f"#cls-scores tbody td:nth-child({column + 1})")
            orders.append(cells.all_text_contents())
        key = (lambda text: int(text.replace(",", ""))) if head == "parameters" else str
        assert orders[0] == sorted(orders[0], key=key)
        assert [*map(key, orders[1])] == sorted(map(key, orders[1]), reverse=True)


@pytest.mark.slow
def test_an_entry_of_the_legend_hides_its_model(report: Path, opened: Open) -> None:
    page = opened(report)
    page.click("nav a[href='#cls-learning']")
    drawn = "document.querySelector('#cls-learning .plot')._fullData"
    visible = f"{drawn}.filter(trace => trace.visible === true).map(trace => trace.legendgroup)"
    assert "gru" in page.evaluate(visible)
    page.click("#cls-learning .legend button:has-text('gru')")
    assert "gru" not in page.evaluate(visible)
    assert "rnn" in page.evaluate(visible)
    page.click("#cls-learning .legend button:has-text('gru')")
    page.dblclick("#cls-learning .legend button:has-text('gru')")
    assert {*page.evaluate(visible)} == {"gru"}


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 720, 1024])
def test_no_width_scrolls_the_page_sideways(width: int, report: Path, opened: Open) -> None:
    page = opened(report, width)
    for link in page.query_selector_all("nav a"):
        link.click()
        page.wait_for_selector(f"section.shown{link.get_attribute('href')}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), link.get_attribute("href")
        rights = "[...document.querySelectorAll('.plot svg')].map(each => each.getBoundingClientRect().right)"
        assert max(page.evaluate(rights), default=0) <= width


@pytest.mark.slow
def test_a_print_has_every_section_with_its_charts(report: Path, opened: Open, tmp_path: Path) -> None:
    page = opened(report, color_scheme="dark")
    pdf = page.pdf(path=tmp_path / "print.pdf", format="A4", print_background=True)
    assert pdf.count(b"/Type /Page\n") > 5
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # as it was
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(traces > 0 for traces in charts(page))
    assert len(charts(page)) > 12
    assert page.evaluate("[...document.querySelectorAll('main > section')].every(e => e.getClientRects().length)")


@pytest.mark.slow
def test_without_scripts_the_tables_are_there(report: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("main > section:visible").count() == page.locator("main > section").count()
    assert page.locator("#cls-scores tbody tr").count() == 7
    context.close()
