"""How far apart the rows of a file are, and which options suit them."""

from __future__ import annotations

import numpy as np

from .sources import DataError
from .steps import DAY, FIXED, Step, spell

JITTER = 0.1  # times differ by less than this share of a step where clocks are inexact
NEAR = 0.02  # share of a step by which the usual distance of such times may differ from it
TOLERATED = 0.05  # share of the distances between rows that may be others than the usual one
LOST = 0.01  # share of the rows that an advised step may cost
WHOLE = [FIXED["s"] * seconds for seconds in (1, 5, 10, 15, 20, 30)] + [
    *(FIXED["min"] * minutes for minutes in (1, 2, 5, 10, 15, 20, 30)),
    *(FIXED["h"] * hours for hours in (1, 2, 3, 4, 6, 8, 12)),
    DAY,
    7 * DAY,
]
"""Steps that people record in, microseconds."""


def require_step(times: np.ndarray, step: Step, resample: str, source: str, from_last: bool) -> int:
    """How many recorded steps make one step of a fixed length.

    Args:
        times: microseconds, rising where the file does.
        step: of the result.
        resample: see `arrange`.
        source: named in errors.
        from_last: whether the rows are for a forecast.

    Raises:
        DataError: the step is not a multiple of the recorded one, or the rows have no such step; with what to set.
    """
    times = np.unique(times)
    if len(times) < 2:
        return 1
    steps = np.sort(np.diff(times))
    native = int(steps[len(steps) // 2])  # the median, but always a step that occurs
    inexact = np.mean((steps != native) & (np.abs(steps - native) < JITTER * native)) > TOLERATED
    if step.count % native == 0 and not _are_months(times) and not (inexact and resample != "mean"):
        return step.count // native
    if from_last:
        raise DataError(
            f"the rows of {source} are {_apart(steps)} apart, which doesn't suit data.step={step}: give it "
            f"rows that are {step} apart, or 1/2, 1/3, … of that"
        )
    raise DataError(
        f"data.step={step} doesn't suit the rows of {source}, which are {_apart(steps)} apart; set "
        f"{advise(times, step)}"
    )


def advise(times: np.ndarray, step: Step) -> str:
    """The options that suit rows of these rising times, in words."""
    steps = np.diff(times)
    native = int(np.sort(steps)[len(steps) // 2])
    if _are_months(times):
        months = np.diff(_months(times))
        count = int(np.gcd.reduce(months))
        if _has_phase(times, "mo"):
            year = 12 if 12 % count == 0 else count
            return _with_lengths(Step(count, "mo"), max(2 * year, 4 * count), max(6, count * 2), year)
    elif are_business_days(times):
        return _with_lengths(Step(1, "bd"), 20, 5, 5)
    elif rounding := _rounding(times, native):
        fits = step.count % rounding == 0
        return f"data.round_times={spell(rounding)}, which rounds the times as they seem to be meant" + (
            "" if fits else f", and data.step={spell(rounding)} or a multiple of it"
        )
    elif (steps % native != 0).mean() <= TOLERATED and (steps < native).mean() <= LOST:
        return f"data.step={spell(native)} or a multiple of it"
    return _with_lengths(Step(1, "rows"), 48, 12, 12) + "; it takes the rows as equally spaced, whatever their times"


def _rounding(times: np.ndarray, native: int) -> int | None:
    """The step of `WHOLE` to round times to; None if none is near, if most fit already, or if times would merge."""
    whole = min(WHOLE, key=lambda each: abs(each - native))
    rounded = (times + whole // 2) // whole
    exact = (np.diff(times) % whole == 0).mean() > 1 - TOLERATED
    return (
        whole if abs(whole - native) < NEAR * native and not exact and len(np.unique(rounded)) == len(times) else None
    )


def _apart(steps: np.ndarray) -> str:
    """The rising distances between rows, in words."""
    low, median, high = (spell(int(steps[place])) for place in (0, len(steps) // 2, -1))
    common = np.mean(steps == steps[len(steps) // 2])
    return median if common > 1 - TOLERATED else f"{low} to {high} (median {median})"


def _with_lengths(step: Step, *lengths: int) -> str:
    values = zip(("lookback", "horizon", "season"), lengths, strict=True)
    options = " ".join(f"data.{key}={step.spell(length // step.count * step.count)}" for key, length in values)
    return f"data.step={step}, and lengths that it divides, as in {options}"


def _months(times: np.ndarray) -> np.ndarray:
    return Step(1, "mo").numbers(times)


def _are_months(times: np.ndarray) -> bool:
    """Whether rows lie one or several calendar months apart, which no fixed length is."""
    steps, months = np.diff(times), np.diff(_months(times))
    typical = np.median(months)
    return bool(
        len(steps) > 1
        and steps.min() >= 24 * DAY
        and months.min() > 0
        and (months % typical == 0).all()
        and len(np.unique(steps[months == typical])) > 1
    )


def are_business_days(times: np.ndarray) -> bool:
    """Whether there is at most one row a day, always at the same time, on Mondays to Fridays alone."""
    days, steps = times // DAY, np.diff(times)
    weekdays = (days + 3) % 7
    return bool(
        (weekdays < 5).all() and len(np.unique(times % DAY)) == 1 and np.median(steps) == DAY and steps.max() > DAY
    )


def _has_phase(times: np.ndarray, unit: str) -> bool:
    try:
        Step(1, unit).located(times, np.zeros(len(times), dtype=np.int64), "")
    except DataError:
        return False
    return True
