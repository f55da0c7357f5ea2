"""What a page is made of: sections of charts, tables and choices between them. The template draws each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from runs.analysis import format_number


@dataclass(frozen=True)
class Cell:
    """One of a table.

    Attributes:
        text: as people read it.
        value: what the column is sorted by; the text if not given.
        spread: behind the text, small: its standard deviation.
        mark: behind that, raised.
        kind: `best`, `quiet`, `text` for a long one, or nothing.
    """

    text: str
    value: float | None = None
    spread: str = ""
    mark: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head whose cells sort them; columns named in `numbers` are set flush right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers: frozenset[str] = frozenset()
    notes: Sequence[str] = ()
    kind: ClassVar = "table"


@dataclass(frozen=True)
class Chart:
    """A figure for plotly.js: `data`, `layout`, and in `narrow` what the layout of a narrow screen changes."""

    title: str
    figure: Mapping[str, Any]
    note: str = ""
    half: bool = False  # two of these may stand side by side
    kind: ClassVar = "chart"


@dataclass(frozen=True)
class Choice:
    """One of several panels at a time, by a drop-down list."""

    title: str  # the list stands behind it
    panels: Mapping[str, Sequence[Table | Chart]]
    note: str = ""
    kind: ClassVar = "choice"


Block = Table | Chart | Choice


@dataclass
class Section:
    """A tab: its anchor, its title and what it shows; without blocks there is no tab."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def number(value: Any, form: str | None = None) -> Cell:
    """A number, by default with four decimals (see `format_number`), or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("–", kind="quiet")
    text = format_number(value) if form is None else form.format(value)
    return Cell(text.replace("-", "−"), float(value))
