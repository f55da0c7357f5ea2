"""Signs that a table holds several series: columns such as `station` that may tell their rows apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

SHOWN = 3  # columns, and values of each, in a message
LEAST, MOST = 3, 100  # rows of each series, and series
ALMOST_ALL, OFTEN = 0.9, 0.3
WHOLE = r"[-+]?\d+"
SERIES = (
    r"(?i)(^|[\W_])(series|station|site|sensor|device|meter|turbine|store|customer|item|location|city)([\W_]|$|id|no)"
)
SERIES_CHINESE = "站|设备|传感器|城市|地点|门店|编号"
"""What is in the names of columns whose values name series."""
CALENDAR = ("hour", "day", "day_of_week", "month", "quarter")


def series_names(frame: pd.DataFrame, pairs: np.ndarray) -> list[str]:
    """Columns that may name a row's series, texts first, each with some of its values.

    They hold few texts or whole numbers, which differ in each of `pairs` (labels of two rows of `frame`).
    """
    candidates = []
    for name in frame.columns:
        cells = frame[name].astype(str)
        distinct = [*cells.unique()]
        differ = np.all(cells[pairs[:, 0]].to_numpy() != cells[pairs[:, 1]].to_numpy())
        if differ and 2 * len(distinct) <= len(cells) and _are_names(cells):
            candidates.append((bool(cells.str.fullmatch(WHOLE).all()), len(distinct), _shown(name, distinct)))
    return [text for *_, text in sorted(candidates)[:SHOWN]]


def series_columns(frame: pd.DataFrame, times: np.ndarray | None, values: np.ndarray) -> list[str]:
    """Columns that may tell apart several series whose rows have different times.

    They have a name such as `station`, and each of their values fills one block of time. Or their values alternate:
    with n values, most rows repeat that of n rows before; or they change often, and a reading changes less than half as
    much between rows of one value as from row to row. Columns that name a part of the time (minute to quarter) do so,
    too, and are left out.

    Args:
        frame: the columns that might name a row's series.
        times: of the rows, microseconds; None if they have none.
        values: the readings (rows, columns).

    Returns:
        Each with some of its values.
    """
    order = np.arange(len(frame)) if times is None else np.argsort(times, kind="stable")
    columns = []
    for name in frame.columns:
        cells = frame[name].astype(str).iloc[order]
        codes, distinct = pd.factorize(cells)
        count = len(distinct)
        if not 2 <= count <= min(MOST, len(cells) // LEAST) or not _are_names(pd.Series(distinct)):
            continue
        if (np.diff(codes) >= 0).all():
            if re.search(SERIES, str(name)) or re.search(SERIES_CHINESE, str(name)):
                columns.append(_shown(name, [*distinct]))
            continue
        changes = (codes[1:] != codes[:-1]).mean()
        in_turn = min(changes, (codes[count:] == codes[:-count]).mean()) > ALMOST_ALL
        if not in_turn and not (changes > OFTEN and _are_apart(codes, values[order])):
            continue
        if times is None or not _is_calendar(cells, codes, times[order]):
            columns.append(_shown(name, [*distinct]))
    return columns[:SHOWN]


def _are_apart(codes: np.ndarray, values: np.ndarray) -> bool:
    """Whether a reading changes less than half as much within the rows of one code as from row to row."""
    by_code = np.argsort(codes, kind="stable")
    same = codes[by_code][1:] == codes[by_code][:-1]
    for column in values.T:
        along, within = np.abs(np.diff(column)), np.abs(np.diff(column[by_code]))[same]
        if _mean(within) < _mean(along) / 2:
            return True
    return False


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _is_calendar(cells: pd.Series, codes: np.ndarray, times: np.ndarray) -> bool:
    """Whether the values stand one to one for a part of the rows' times."""
    dates = pd.DatetimeIndex(times.astype("datetime64[us]"))
    for part in CALENDAR:
        numbers = np.asarray(getattr(dates, part))
        pairs = len(np.unique(np.column_stack([codes, numbers]), axis=0))
        if pairs == len(np.unique(codes)) == len(np.unique(numbers)):
            return True
    minutes = pd.Series(dates.minute.astype(str), index=cells.index)
    return bool((cells.str.lstrip("0") == minutes.str.lstrip("0")).all())


def _are_names(cells: pd.Series) -> bool:
    """Whether they may be names: whole numbers, or no numbers."""
    numbers = cells.str.fullmatch(r"\s*|[-+]?\d+([.,]\d*)?([eE].*)?")
    return bool((cells.str.fullmatch(WHOLE) | ~numbers).all())


def _shown(name: Any, values: Sequence[str]) -> str:
    return f"{name!r} ({', '.join([*values[:SHOWN], *['…'] * (len(values) > SHOWN)])})"
