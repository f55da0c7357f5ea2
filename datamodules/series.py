"""A timestamped table as windows: `lookback` of inputs, then `horizon` of the target to forecast."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from .cleaning import CleanSeries, clean, require_float32, warn_of_sentinels
from .formats import WIND, CsvFormat, series_columns, time_columns
from .recordings import micro
from .sampling import ResumableLoader, split_loader
from .sources import SPLITS, DataError, Source, at_least, file_sha256, one_of, path_text
from .spacing import advise, are_business_days
from .steps import NAMES, Step, format_offset, instant, with_offset
from .streaming import read_table
from .synthetic import sample_climate
from .windows import Climatology, WindowDataset, calendar_of, features_of, forward_fill, offset_of, window_starts

logger = logging.getLogger(__name__)

SAMPLE = "sample_climate"
FAR = 1000  # interquartile ranges from the median: no reading lies there, but what files write for a missing one may
TORN = 0.1  # share of the rows within a window of a gap that is worth a warning


class SeriesDataModule(pl.LightningDataModule):
    """Windows of a timestamped table, split by time before anything is learned from it.

    A batch is a dict, with B windows, L steps of lookback, H steps of horizon and F features:
    `inputs` float32 (B, L, F), scaled; `targets` float64 (B, H), in the target's own unit, less `target_offset`;
    `history` float64 (B, L), the target over the lookback, alike; `climatology` float64 (B, H), what is usual at the
    targets' times, alike; `origin` int64 (B,), the time of the last input, in steps since the first row; `index` int64
    (B,), for `describe`. A window lies in one gap-free stretch, and its targets in one split.
    Scaler and climatology know the training rows alone.

    `target_offset` is a round number near the training mean of a target that varies little around a large value, such
    as coordinates or a meter's reading (see `offset_of`), and otherwise 0, and then not among the facts.

    Args:
        name: of the data set.
        path, files, urls, sha256, on_missing: where the file is, see `Source`.
        expected: file name to `{rows, first, last}` of files whose hash is not known; a difference is a warning.
        time_column, time_format: where the time is, and how it is written, see `parse_times`.
        target: the column to forecast.
        features: the columns to forecast from, in this order.
        wind: the columns of wind `speed` and `direction`: adds the components `wind_x` and `wind_y` to the features.
        calendar: adds sine and cosine of the time of day and of the year to the features.
        missing_values: numbers that mean "missing".
        missing_words: words that mean it, beside the usual ones.
        missing: `drop` drops every window with something missing; `ffill` first fills inputs (never targets) with the
            last value, at most `fill_limit` steps old, in empty cells and absent rows alike (without `min_share`, as in
            runs from before there was one, in empty cells alone).
        decimal, duplicates, step, resample, round_times, min_share, bin_offset, allow_loss: see `clean` and `arrange`.
        lookback, horizon, season: durations, multiples of `step`.
        stride: steps from one window to the next.
        split: `date` (train < `val_from` <= val < `test_from` <= test < `test_until`) or `fraction` (the last
            `test_fraction` of the rows, and `val_fraction` before it). `val_from` and `test_until` may be durations
            (`90d`, or `1y` for a calendar year) before and behind `test_from`.
        reach_back: a window belongs to the split of its targets, and the inputs of a split's first windows lie before
            it, as they would in use; false: inputs must lie in the split as well.
        batch_size, num_workers, seed: of the batches and their order.
        sample_years, sample_seed: of the built-in sample.
        csv_format: how the file is written, see `CsvFormat`.

    Attributes:
        sizes: `num_features` F, `lookback` L, `horizon` H, `season_length` in steps, `step_hours`.
        facts, report: what a model, and a reader, must know of the data; filled by `setup`.
    """

    def __init__(
        self,
        name: str,
        path: str | None = None,
        files: Sequence[str] = (),
        urls: Sequence[str] = (),
        sha256: Mapping[str, str] | None = None,
        expected: Mapping[str, Mapping[str, Any]] | None = None,
        on_missing: str = "sample",
        decimal: str = ".",
        time_column: str | Sequence[str] | None = "Date Time",
        time_format: str = "%d.%m.%Y %H:%M:%S",
        target: str = "T (degC)",
        features: Sequence[str] = ("T (degC)", "p (mbar)", "rh (%)", "VPact (mbar)"),
        wind: Mapping[str, str] | None = None,
        calendar: bool = True,
        missing_values: Sequence[float] = (-9999,),
        missing_words: Sequence[str] = (),
        missing: str = "drop",
        fill_limit: int = 3,
        duplicates: str = "identical",
        step: str = "1h",
        resample: str = "sample",
        min_share: float | None = None,
        bin_offset: str | None = None,
        allow_loss: bool = True,
        lookback: str = "5d",
        horizon: str = "2d",
        stride: int = 1,
        split: str = "date",
        val_from: str | None = "2015-01-01",
        test_from: str | None = "2016-01-01",
        test_until: str | None = None,
        reach_back: bool = True,
        val_fraction: float = 0.2,
        test_fraction: float = 0.1,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        sample_years: int = 3,
        sample_seed: int = 0,
        season: str = "1d",
        round_times: str | None = None,
        **csv_format: Any,
    ) -> None:
        super().__init__()
        self.source = Source(name, path, tuple(files), tuple(urls), dict(sha256 or {}), on_missing, SAMPLE)
        self.name, self.is_sample = self.source.title, False
        self._expected = expected or {}
        self._reading = CsvFormat(**csv_format).state()
        self._sample_years, self._sample_seed = sample_years, sample_seed
        self._target, self._calendar = target, calendar
        self._features = [*features, *(extra for extra in WIND if wind is not None and extra not in features)]
        self._step = Step.parse("step", step)
        if round_times is not None and not Step.parse("round_times", round_times).is_fixed:
            raise DataError(f"data.round_times={round_times} must be a duration such as 1h or 10min")
        self._names = [*self._features, *(calendar_of(self._step) if calendar else ())]
        self._missing, self._fill_limit, self._stride = missing, fill_limit, stride
        self._split, self._reach_back, self._fractions = split, reach_back, (val_fraction, test_fraction)
        self._batching: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
        one_of(
            decimal=(decimal, (".", ",")),
            missing=(missing, ("drop", "ffill")),
            duplicates=(duplicates, ("identical", "first", "last", "mean", "error")),
            resample=(resample, ("sample", "mean", "rows")),
            split=(split, ("date", "fraction")),
        )
        at_least(1, stride=stride, batch_size=batch_size, fill_limit=fill_limit, sample_years=sample_years)
        if split == "fraction" and not (min(self._fractions) > 0 and sum(self._fractions) < 1):
            raise DataError("data.val_fraction and data.test_fraction must be above 0 and leave something to train on")
        self._check_features(wind, {"resample": resample, "duplicates": duplicates})
        columns = [target, *self._features, *(wind.values() if wind is not None else ())]
        self._cleaning = {
            "time_column": str(names[0]) if len(names := time_columns(time_column)) == 1 else names or None,
            "time_format": time_format,
            "columns": list(dict.fromkeys(column for column in columns if wind is None or column not in WIND)),
            **({} if decimal == "." else {"decimal": decimal}),  # runs from before there was a choice stay the same
            **({"missing_words": list(missing_words)} if missing_words else {}),
            "wind": dict(wind) if wind is not None else None,
            "missing_values": list(missing_values or ()),
            "step": step,
            "resample": resample,
            "duplicates": duplicates,
            **({} if min_share is None else {"min_share": min_share}),
            **({} if bin_offset is None else {"bin_offset": bin_offset}),
            **({"fill_rows": fill_limit} if missing == "ffill" and min_share is not None else {}),
            **({} if round_times is None else {"round_times": round_times}),
        }
        self._allow_loss = allow_loss
        if bin_offset is not None and not (self._step.is_fixed and Step.parse("bin_offset", bin_offset).is_fixed):
            raise DataError(
                f"data.bin_offset={bin_offset} must be a fixed length such as 6h, and so must data.step={step}"
            )
        if bin_offset is not None and resample != "mean":
            raise DataError(f"data.bin_offset={bin_offset} is for means: add data.resample=mean, or leave it out")
        if time_column is None and (self._step.unit != "rows" or split == "date"):
            raise DataError("data.time_column=null, for rows without times, needs data.step=rows data.split=fraction")
        lengths = {"lookback": lookback, "horizon": horizon, "season": season}
        self._lookback, self._horizon, self._season = self._count(lengths)
        if self._lookback < self._season:
            raise DataError(
                f"data.lookback={lookback} is shorter than data.season={season}: lengthen the one or shorten the other"
            )
        dates = {"val_from": val_from, "test_from": test_from, "test_until": test_until}
        self._bounds = self._parse_dates(dates) if split == "date" else []
        self._sets: dict[str, WindowDataset] = {}
        self.sizes = {
            "num_features": len(self._names),
            "lookback": self._lookback,
            "horizon": self._horizon,
            "season_length": self._season,
            "step_hours": self._step.hours,
        }
        self.facts: dict[str, Any] = {}
        self.report: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, clean, split, fit scaler and climatology on the training rows, and find the windows; once.

        Raises:
            DataError: for a file, column, row or setting that does not serve, or a split without a window.
        """
        if self._sets:
            return
        frame, file = self._read()
        source = str(file or self.name)
        series = clean(frame, **self._cleaning, allow_loss=self._allow_loss, source=source)
        warn_of_sentinels(series.report, source, f"data.missing_values, now {self._cleaning['missing_values']}")
        splits = self._split_rows(series)
        features = features_of(series, self._features, self._calendar)
        target = series.column(self._target)
        reach = self._lookback if self._reach_back else 0
        spans = {
            name: slice(max(0, rows.start - reach * (name != "train")), rows.stop) for name, rows in splits.items()
        }
        segments = series.segments(breaks=() if reach else [rows.start for rows in splits.values()])
        observed = np.column_stack([features, target])
        read = np.column_stack([series.column(name) for name in self._cleaning["columns"]])
        known, kept = (
            forward_fill(values, segments, self._fill_limit) if self._missing == "ffill" else values
            for values in (observed, read)
        )
        found, starts = self._find_windows(spans, segments, np.isnan(known), np.isnan(target))
        for name, rows in splits.items():
            filled = np.isnan(read[rows]) & ~np.isnan(kept[rows])  # of the file, each once
            found[name] = {"rows": len(filled), "cells_filled": int(filled.sum()), **found[name]}
        self.report = self._report(frame, file, series, splits, found)
        self._require_windows(series, spans, segments, np.isnan(known), found)

        train = splits["train"]
        mean, std = self._fit_scaler(observed[train])
        require_float32(known, [*self._names, self._target], series.lines, source, std)
        offset = offset_of(float(mean[-1]), float(std[-1]))
        history, targets = known[:, -1] - offset, target - offset
        climatology = Climatology.fit(series.times[train], targets[train], series.step)
        self.facts = self._facts(mean, std, offset, climatology, series.utc_offset)
        inputs = np.ascontiguousarray((known[:, :-1] - mean[:-1]) / std[:-1], dtype=np.float32)
        tables = (inputs, history, targets, climatology.predict(series.times))
        clock = (series.numbers - series.numbers[0]) // series.step.count
        self._sets = {
            name: WindowDataset(*tables, starts[name], self._lookback, self._horizon, series.times, clock)
            for name in SPLITS
        }

    def train_dataloader(self) -> ResumableLoader:
        """Batches of training windows, in a new order every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        """Batches of validation windows, in time order."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Batches of test windows, in time order."""
        return self._loader("test")

    def dataset(self, split: str) -> WindowDataset:
        """The windows of `train`, `val` or `test`."""
        self.setup()
        return self._sets[split]

    def describe(self, split: str, index: np.ndarray) -> pd.DataFrame:
        """One row per window of `index`: times of its last input (`origin`), `first_target` and `last_target`."""
        windows = self.dataset(split)
        origin = windows.starts[np.asarray(index)] + windows.lookback - 1
        rows = {"origin": origin, "first_target": origin + 1, "last_target": origin + windows.horizon}
        return pd.DataFrame(
            {name: with_offset(windows.times[row], self.facts["utc_offset"]) for name, row in rows.items()}
        )

    def target_times(self, split: str, index: np.ndarray, step: np.ndarray) -> pd.Series:
        """The time of each target: of the window at this position, so many steps (from 1) after its last input."""
        windows = self.dataset(split)
        rows = windows.starts[index] + windows.lookback - 1 + step
        return with_offset(windows.times[rows], self.facts["utc_offset"])

    def _loader(self, split: str) -> ResumableLoader:
        return split_loader(self.dataset(split), split, self.trainer, **self._batching)

    def _count(self, lengths: Mapping[str, str]) -> list[int]:
        """How many steps these durations are."""
        unit = self._step.unit
        if other := [key for key, value in lengths.items() if Step.parse(key, value).unit != unit]:
            given = ", ".join(f"data.{key}={lengths[key]}" for key in other)
            raise DataError(
                f"{given} can't be counted in steps of data.step={self._step}: give all of data.lookback, data.horizon "
                f"and data.season as {NAMES[unit]}"
            )
        if uneven := [key for key, value in lengths.items() if Step.parse(key, value).count % self._step.count]:
            step = self._step
            given = ", ".join(f"data.{key}={lengths[key]}" for key in uneven)
            raise DataError(
                f"{given} is not a multiple of data.step={step}: data.lookback, data.horizon and data.season must be, "
                f"as {step.spell(step.count)} and {step.spell(4 * step.count)} are"
            )
        return [self._step.steps(key, value) for key, value in lengths.items()]

    def _check_features(self, wind: Mapping[str, str] | None, rules: Mapping[str, str]) -> None:
        if not self._names or len(set(self._features)) < len(self._features):
            raise DataError(f"data.features={self._features} must name at least one column, and each only once")
        if wind is not None and set(wind) != {"speed", "direction"}:
            raise DataError(f"data.wind={dict(wind)} must name two columns: {{speed: …, direction: …}}")
        averaged = next((key for key, rule in rules.items() if rule == "mean"), None)
        if wind is not None and averaged and wind["direction"] in self._features:
            raise DataError(
                f"data.features holds {wind['direction']!r}, an angle, whose mean (data.{averaged}=mean) is no "
                "direction: leave it out"
            )

    def _parse_dates(self, dates: Mapping[str, str | None]) -> list[np.datetime64 | None]:
        """The first times of validation and test, and the first behind the test if there is one."""
        test = instant("test_from", dates["test_from"])
        known = [instant("val_from", dates["val_from"], before=test), test]
        if dates["test_until"] is not None:
            known.append(instant("test_until", dates["test_until"], after=test))
        if known != sorted(set(known)):
            raise DataError(f"data.val_from < data.test_from < data.test_until must hold: {dict(dates)}")
        return [*known, None][:3]

    def _read(self) -> tuple[pd.DataFrame, Path | None]:
        file = self.source.locate()
        needed = series_columns(self._cleaning["time_column"], self._target, self._features, self._cleaning["wind"])
        if file is not None:
            return read_table(file, columns=needed, **self._reading), file
        self.name, self.is_sample = SAMPLE, True
        frame = sample_climate(self._sample_years, self._sample_seed)
        if absent := [column for column in needed if column not in frame]:
            raise DataError(f"{SAMPLE} has no columns {absent}; it has {list(frame.columns)}")
        return frame, None

    def _split_rows(self, series: CleanSeries) -> dict[str, slice]:
        """The rows of each split: consecutive, so that a boundary is one row."""
        rows = len(series.times)
        if rows < self._lookback + self._horizon:
            raise DataError(
                f"{self.name} has {rows} rows of {self._step} after cleaning, a window needs "
                f"{self._lookback + self._horizon}: shorten data.lookback ({self._lookback}) or data.horizon "
                f"({self._horizon}), or give a longer series"
            )
        if self._split == "fraction":
            val, test = self._fractions
            edges = [0, round(rows * (1 - val - test)), round(rows * (1 - test)), rows]
        else:
            edges = [0, *(rows if date is None else int(np.searchsorted(series.times, date)) for date in self._bounds)]
        return {name: slice(edges[at], edges[at + 1]) for at, name in enumerate(SPLITS)}

    def _find_windows(
        self,
        spans: Mapping[str, slice],
        segments: np.ndarray,
        inputs_missing: np.ndarray,
        target_missing: np.ndarray,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Per split: counts for the report, and the first row of each window."""
        bad_inputs = np.asarray(inputs_missing.any(axis=1))
        found, starts = {}, {}
        for name, rows in spans.items():
            within, lost = window_starts(
                segments[rows], bad_inputs[rows], target_missing[rows], self._lookback, self._horizon, self._stride
            )
            starts[name] = within + rows.start
            found[name] = {"windows": len(within), **lost}
        return found, starts

    def _require_windows(
        self,
        series: CleanSeries,
        spans: Mapping[str, slice],
        segments: np.ndarray,
        missing: np.ndarray,
        found: Mapping[str, Any],
    ) -> None:
        sizes = ", ".join(f"{name} {found[name]['rows']} rows, {found[name]['windows']} windows" for name in SPLITS)
        if empty := [name for name in SPLITS if not found[name]["windows"]]:
            name = empty[0]
            longest = max(np.unique(segments[spans[name]], return_counts=True)[1], default=0)
            lost = missing[spans[name]].sum(axis=0)
            worst = [*self._names, self._target][int(lost.argmax())]
            raise DataError(
                f"{self.name}: the {name} split holds no window ({sizes}). A window needs "
                f"{self._lookback + self._horizon} rows without a gap; the longest run there has {longest}, and "
                f"{found[name]['dropped_missing']} windows were dropped for missing values"
                + (f" (of column {worst!r}, {lost.max()} are missing). " if lost.any() else ". ")
                + "The data run from "
                f"{series.text_of(0)} to {series.text_of(-1)}: "
                + self._fill(found[name])
                + "move the split (data.val_from, data.test_from, "
                "data.test_until; or data.split=fraction, and the fractions) or shorten data.lookback"
                + self._remedy(series)
            )
        for name in SPLITS:
            lost = found[name]["dropped_missing"] + found[name]["dropped_across_gap"]
            if lost > found[name]["windows"]:
                logger.warning(
                    "%s: %d of %d windows of the %s split are left out for what is missing in them; %sshorten "
                    "data.lookback",
                    *(self.name, lost, lost + found[name]["windows"], name, self._fill(found[name])),
                )

    def _fill(self, of_split: Mapping[str, Any]) -> str:
        """What to do about missing values, of which those of the target are never made up."""
        ways = []
        if of_split["dropped_missing"] > of_split["dropped_target"]:
            limit = f"up to {self._fill_limit} steps (data.fill_limit)"
            ways.append(
                f"data.missing=ffill carries the last value on for {limit}"
                if self._missing == "drop"
                else f"raise the number of steps that are filled, data.fill_limit={self._fill_limit}"
            )
        if of_split["dropped_target"]:
            ways.append("shorten data.horizon, for a target is never filled in")
        return "".join(f"{way}, or " for way in ways)

    def _remedy(self, series: CleanSeries) -> str:
        """What to do about gaps: at weekends, on holidays, and those that taking one row of k makes of single rows."""
        if self._step.unit == "bd" and series.report["gaps"]:
            return "; a holiday without a row is a gap: data.step=rows takes the rows as equally spaced instead"
        if self._step.is_fixed and are_business_days(micro(series.times)):
            return f"; there are no rows on weekends: set {advise(micro(series.times), self._step)}"
        sampled = self._cleaning["resample"] != "mean" and series.report["native_step"] != str(self._step)
        if not sampled or not series.report["gaps"]:
            return ""
        return (
            f"; each row missing at the recorded step of {series.report['native_step']} leaves a gap of more than "
            f"{self._step} between the rows that are taken: data.resample=mean averages over it instead"
        )

    def _fit_scaler(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the features and, last, of the target; the calendar keeps its scale."""
        mean, std = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        for column in [*range(len(self._features)), -1]:
            seen = rows[~np.isnan(rows[:, column]), column]
            mean[column], deviation = seen.mean(), seen.std()
            if deviation > 1e-13 * abs(mean[column]):  # what is constant but for rounding stays unscaled
                std[column] = deviation
        return mean, std

    def _facts(
        self, mean: np.ndarray, std: np.ndarray, offset: float, climatology: Climatology, utc_offset: int | None
    ) -> dict[str, Any]:
        names = self._names
        unit = re.search(r"\(([^()]*)\)\s*$", self._target)
        text = unit.group(1) if unit else ""
        return {
            "features": names,
            **self.sizes,
            "target": self._target,
            "target_index": names.index(self._target) if self._target in names else None,
            "unit": "°C" if text == "degC" else text,
            "step": str(self._step),
            "utc_offset": utc_offset,
            "feature_mean": mean[:-1].tolist(),
            "feature_std": std[:-1].tolist(),
            **({"target_offset": offset} if offset else {}),  # runs from before there was one stay the same
            "target_mean": float(mean[-1]) - offset,
            "target_std": float(std[-1]),
            "climatology": climatology.state(),
            "calendar": self._calendar,
            "wind": self._cleaning["wind"],
            "missing": self._missing,
            "fill_limit": self._fill_limit,
            "reading": self._reading,
            "cleaning": self._cleaning,
        }

    def _report(
        self,
        frame: pd.DataFrame,
        file: Path | None,
        series: CleanSeries,
        splits: Mapping[str, slice],
        found: dict[str, Any],
    ) -> dict[str, Any]:
        """What was read, every trap met, and what came of it; logged as well."""
        ends = {
            name: {"from": series.text_of(rows.start), "to": series.text_of(rows.stop - 1)}
            for name, rows in splits.items()
            if rows.stop > rows.start
        }
        unused = len(series.times) - splits["test"].stop
        report = {
            "name": self.name,
            "source": path_text(file) if file else f"built-in: {self._sample_years} years of seed {self._sample_seed}",
            "sha256": file_sha256(file) if file else None,
            "unexpected": self._unexpected(frame, file),
            **frame.attrs,
            **series.report,
            "clock": "as written" if series.utc_offset is None else f"UTC{format_offset(series.utc_offset)}",
            "far_off": self._far_off(series, splits["train"]),
            "rows_after_test_until": unused,
            "reach_back": self._reach_back,
            "splits": {name: {**ends.get(name, {}), **found[name]} for name in SPLITS},
            "learned_from": {"scaler and climatology": "train", **ends.get("train", {})},
        }
        logger.info("%s: %s", self.name, series.summary())
        if series.utc_offset is not None:
            logger.info("%s: all times here, and dates in options, are on the clock %s", self.name, report["clock"])
        torn = len(series.report["gaps"]) * (self._lookback + self._horizon)
        if (remedy := self._remedy(series)) and torn > TORN * len(series.times):
            logger.warning("%s: many windows are lost to gaps%s", self.name, remedy)
        logger.info(
            "%s: %s",
            self.name,
            "; ".join(
                f"{name} {sizes['rows']} rows, {sizes['windows']} windows "
                f"({sizes['dropped_across_gap']} dropped across gaps, {sizes['dropped_missing']} for missing values"
                f"{', ' + str(sizes['cells_filled']) + ' cells filled' if sizes['cells_filled'] else ''})"
                for name, sizes in found.items()
            ),
        )
        return report

    def _far_off(self, series: CleanSeries, train: slice) -> dict[str, int]:
        """How many values of each column no training value is anywhere near; a warning says where and what to do."""
        counts, found = {}, []
        for name in self._cleaning["columns"]:
            values = series.column(name)
            seen = values[train][~np.isnan(values[train])]
            low, median, high = np.quantile(seen, [0.25, 0.5, 0.75]) if len(seen) else (0.0, 0.0, 0.0)
            warned = [value["value"] for value in series.report["sentinels"] if value["column"] == name]
            far = (np.abs(values - median) > FAR * (high - low)) & ~np.isin(values, warned)
            if high > low and far.any():
                counts[name], row = int(far.sum()), int(far.argmax())
                of_line = "mean from line" if self._cleaning["resample"] == "mean" else "line"
                found.append(
                    f"{counts[name]} of {name!r}, the first {values[row]:g} at {series.text_of(row)} "
                    f"({of_line} {series.lines[row]})"
                )
        if found:
            logger.warning(
                "%s: values more than %d interquartile ranges from the training median: %s; if they stand for missing "
                "readings, set data.missing_values, now %s, to name them as well",
                *(self.name, FAR, "; ".join(found), self._cleaning["missing_values"]),
            )
        return counts

    def _unexpected(self, frame: pd.DataFrame, file: Path | None) -> dict[str, Any]:
        """How a known file differs from what it should be."""
        facts: dict[str, Any] = {"rows": len(frame)}
        if names := time_columns(self._cleaning["time_column"]):
            times = frame[names]
            facts |= {"first": " ".join(times.iloc[0]), "last": " ".join(times.iloc[-1])}
        expected = self._expected.get(file.name, {}) if file else {}
        differences = {
            key: {"expected": value, "found": facts[key]} for key, value in expected.items() if facts[key] != value
        }
        if differences:
            logger.warning("%s is not the known file of that name, or not all of it: %s", file, differences)
        return differences
