"""A table of labelled texts: cleaned, split by class, kept as flat arrays of token ids. T tokens, B texts."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import unicodedata
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from .sources import SPLITS, DataError, is_safe
from .streaming import LINE

logger = logging.getLogger(__name__)

PADDING, UNKNOWN = 0, 1
CHARACTERS = 10_000  # of a text in a batch: one endless text mustn't fill the memory
OTHER = "other"  # the class of those that are too small
SHOWN = 10  # lines named in a message about many


@dataclass(frozen=True)
class Corpus:
    """Cleaned texts, their labels, their 0-based rows in the file, and all classes in order of first appearance.

    Of several files, `files` has which split's each is from, as a position in `SPLITS`.
    """

    texts: list[str]
    labels: list[str]
    rows: np.ndarray
    classes: list[str]
    files: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: np.ndarray) -> Corpus:
        """The texts at `positions`; the classes stay."""
        texts, labels = ([values[p] for p in positions.tolist()] for values in (self.texts, self.labels))
        files = None if self.files is None else self.files[positions]
        return Corpus(texts, labels, self.rows[positions], self.classes, files)


def clean(
    frame: pd.DataFrame, text_column: str, target: str, where: str, unlabelled: str = "error"
) -> tuple[Corpus, dict[str, Any]]:
    """The rows worth learning from, and how many of each trap there were.

    Empty texts are dropped, and so are exact duplicates (same label, same text) but for the first; a text under two
    labels is kept. Rows without a label are an error, or dropped.

    Raises:
        DataError: for rows without a label where that is an error, or if nothing is left.
    """
    raw = frame[text_column].tolist()
    rows = pd.DataFrame(
        {"text": [clean_text(text) for text in raw], "label": [clean_text(label) for label in frame[target]]},
        dtype=object,
    )
    without = (rows["label"] == "").to_numpy(dtype=bool)
    if without.any() and unlabelled == "error":
        found = frame[LINE].to_numpy()[without]
        lines = ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
        raise DataError(
            f"{where}: column {target!r} is empty in {len(found)} row(s), line(s) {lines}: fill in the class, or leave "
            "the rows out with data.unlabelled=drop"
        )
    labelled = rows[~without]
    filled = labelled[labelled["text"] != ""]
    kept = filled[~filled.duplicated(["label", "text"])]
    if kept.empty:
        raise DataError(f"{where}: column {text_column!r} holds no text: choose another data.text_column")
    # Duplicates are gone, so a text that occurs twice stands under two labels.
    conflicting = kept.loc[kept.duplicated("text", keep=False), "text"]
    report = {
        "rows_read": len(rows),
        **frame.attrs,
        "nul_removed": frame.attrs.get("nul_removed", 0) + sum(text.count("\0") for text in raw),
        "bom_removed": sum(text.count("\ufeff") for text in raw),
        "unlabelled_dropped": int(without.sum()),
        "empty_dropped": len(labelled) - len(filled),
        "duplicates_dropped": len(filled) - len(kept),
        "conflicting_rows": len(conflicting),
        "conflicting_texts": conflicting.nunique(),
        "rows_kept": len(kept),
    }
    classes = list(dict.fromkeys(kept["label"]))
    return Corpus(kept["text"].tolist(), kept["label"].tolist(), kept.index.to_numpy(), classes), report


def join(cleaned: Mapping[str, tuple[Corpus, dict[str, Any]]]) -> tuple[Corpus, dict[str, Any]]:
    """The files of the splits, each as from `clean`, as one; what an earlier file holds is dropped and counted."""
    parts = [corpus for corpus, _ in cleaned.values()]
    reports = {split: report for split, (_, report) in cleaned.items()}
    files = np.repeat([SPLITS.index(split) for split in cleaned], [len(part) for part in parts])
    texts, labels = ([value for part in parts for value in getattr(part, name)] for name in ("texts", "labels"))
    rows = pd.DataFrame({"text": texts, "label": labels}, dtype=object)
    repeated = rows.duplicated(["label", "text"]).to_numpy(dtype=bool)
    kept = np.flatnonzero(~repeated)
    classes = list(dict.fromkeys(name for part in parts for name in part.classes))
    corpus = Corpus(texts, labels, np.concatenate([part.rows for part in parts]), classes, files).take(kept)
    known = set(cleaned["train"][0].classes)
    conflicting = rows.loc[kept, "text"][rows.loc[kept].duplicated("text", keep=False)]
    unseen: dict[str, dict[str, int]] = {}  # a class that the training file lacks: its rows in each of the others
    for label, number in zip(corpus.labels, files[kept].tolist(), strict=True):
        if label not in known:
            counts = unseen.setdefault(label, {})
            counts[SPLITS[number]] = counts.get(SPLITS[number], 0) + 1
    report = {
        **{name: sum(each[name] for each in reports.values()) for name in reports["train"]},
        "first_enclosing_line": reports["train"]["first_enclosing_line"],
        "unterminated": any(each["unterminated"] for each in reports.values()),
        "conflicting_rows": len(conflicting),
        "conflicting_texts": conflicting.nunique(),
        "rows_kept": len(kept),
        "duplicates_across_files": {
            split: int(repeated[files == SPLITS.index(split)].sum()) for split in cleaned if split != "train"
        },
        "not_in_training": unseen,
        "files": reports,
    }
    return corpus, report


def treat_small_classes(corpus: Corpus, rule: str, least: int) -> tuple[Corpus, dict[str, int]]:
    """The corpus without its classes of fewer than `least` rows to train with, or, by `merge`, with one class of them.

    Where that doesn't help the corpus stays as it is: `check_classes` then names its classes.

    Returns:
        The corpus, and the classes that were small with their numbers of rows.
    """
    counts = _count_training(corpus)
    small = {name for name in corpus.classes if counts[name] < least}
    if not small or rule not in _remedies(corpus, least):
        return corpus, {}
    everywhere = Counter(corpus.labels)
    treated = {name: everywhere[name] for name in corpus.classes if name in small}
    if rule == "drop":
        corpus = corpus.take(np.flatnonzero([label not in small for label in corpus.labels]))
        return replace(corpus, classes=[name for name in corpus.classes if name not in small]), treated
    labels = [OTHER if label in small else label for label in corpus.labels]
    classes = list(dict.fromkeys(OTHER if name in small else name for name in corpus.classes))
    return replace(corpus, labels=labels, classes=classes), treated


def check_classes(corpus: Corpus, files: Mapping[str, str], unseen: Mapping[str, Mapping[str, int]]) -> None:
    """Raise unless there are two classes, and of each a training row for every split that is to be drawn.

    Args:
        corpus: after `treat_small_classes`.
        files: split to the name of its file; that of the training split is there.
        unseen: the classes that the training file lacks, with their rows in each other file; see `join`.

    Raises:
        DataError: with the remedies that help.
    """
    counts, least, where = _count_training(corpus), len(SPLITS) - len(files) + 1, files["train"]
    small = {name: counts[name] for name in corpus.classes if counts[name] < least}
    if len(counts) > 1 and not small:
        return
    few = {name: count for name, count in small.items() if name not in unseen}
    problems = [
        f"class {name!r} occurs only in {' and '.join(files[split] for split in unseen[name])}: no model can learn it"
        for name in small
        if name in unseen
    ]
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"so it is with {len(problems) - SHOWN} more"]
    if few:
        problems.append(f"too few rows of {few}")
    if not small:
        problems.append("there is one class only")
    lost = sum(label in small for label in corpus.labels)
    ways = {
        "drop": f"leave their {lost} row(s) out with data.small_classes=drop, ",
        "merge": "make one class of them with data.small_classes=merge, ",
    }
    helpful = "".join(ways[rule] for rule in _remedies(corpus, least) if small)
    limit = ", or raise data.limit if it is set" if few or not small else ""
    raise DataError(
        f"{where} cannot be split by class: {'; '.join(problems)}. There must be two classes and {least} row(s) of each"
        f"{' in the training file' if len(files) > 1 else ''}; rows per class: {counts}; "
        f"{helpful}{'correct the labels, ' if unseen else ''}add rows, choose another data.target{limit}"
    )


def _count_training(corpus: Corpus) -> dict[str, int]:
    """Rows of each class in the training file, 0 for one that is in another file alone."""
    labels = corpus.labels
    training = range(len(labels)) if corpus.files is None else np.flatnonzero(corpus.files == 0).tolist()
    return {name: 0 for name in corpus.classes} | Counter(labels[position] for position in training)


def _remedies(corpus: Corpus, least: int) -> list[str]:
    """The rules for small classes that leave two classes, `least` rows of each, and no file empty."""
    counts = _count_training(corpus)
    small = {name for name, count in counts.items() if count < least}
    large = len(counts) - len(small)
    rules = []
    remain = np.array([label not in small for label in corpus.labels], dtype=bool)
    if large > 1 and (corpus.files is None or set(corpus.files[remain]) == set(corpus.files)):
        rules.append("drop")
    if OTHER in counts and OTHER not in small:
        enough = large > 1  # they join a class that is there
    else:
        enough = large > 0 and sum(counts[name] for name in small) >= least
    # Of classes without a training row alone a merged one is no more than a wrong name.
    if enough and any(counts[name] for name in small):
        rules.append("merge")
    return rules


def look_alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that look the same: they differ in their form in Unicode, kinds of blanks, or hidden signs."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        signs = unicodedata.normalize("NFC", " ".join(label.split()))
        visible = "".join(sign for sign in signs if unicodedata.category(sign) not in ("Cf", "Cc"))
        groups.setdefault(visible, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def clean_text(text: str) -> str:
    """`text` without byte order marks, NULs and surrounding white space."""
    return text.replace("\ufeff", "").replace("\0", "").strip()


def split_by_class(
    corpus: Corpus,
    where: str,
    rule: str,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    own: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Positions of each split, in order: a function of the texts and these arguments alone.

    Those with a file of their `own` are that; the others are drawn from the training file.

    Raises:
        DataError: for an empty split, or one too small for the classes.
    """
    given = {split: np.flatnonzero(corpus.files == SPLITS.index(split)) for split in own}
    everything = np.setdiff1d(np.arange(len(corpus)), np.concatenate([np.empty(0, int), *given.values()]))
    if "test" in given:
        rest, test = everything, given["test"]
    elif rule == "index%5":
        tested = corpus.rows[everything] % 5 == 0
        rest, test = everything[~tested], everything[tested]
    else:
        rest, test = _draw(everything, corpus.labels, test_fraction * len(everything), seed)
    train, val = (
        (rest, given["val"]) if "val" in given else _draw(rest, corpus.labels, val_fraction * len(everything), seed)
    )
    positions = {"train": train, "val": val, "test": test}
    sizes = {split: len(rows) for split, rows in positions.items()}
    for split in SPLITS:
        if not sizes[split]:
            way = "raise data.limit, which leaves no row" if split in own else "change the fractions or use more rows"
            raise DataError(f"{where}: the {split} split is empty (sizes {sizes}): {way}")
    return positions


def _draw(positions: np.ndarray, labels: list[str], size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What remains of `positions`, and `size` of them drawn with the classes in proportion."""
    from sklearn.model_selection import train_test_split

    count = int(np.ceil(round(size, 6)))
    if count == 0:
        return positions, positions[:0]
    if count >= len(positions):
        return positions[:0], positions
    strata = [labels[position] for position in positions]
    try:
        rest, drawn = train_test_split(positions, test_size=count, stratify=strata, random_state=seed)
    except ValueError as error:
        raise DataError(
            f"cannot draw {count} of {len(positions)} rows by class ({error}); rows per class: "
            f"{dict(Counter(strata))}. Use more rows or larger data.val_fraction and data.test_fraction"
        ) from error
    return np.sort(rest), np.sort(drawn)


def in_proportion(labels: list[str], size: int, seed: int) -> np.ndarray:
    """`size` positions, chosen with the classes in proportion, in order."""
    generator = np.random.default_rng(seed)
    shuffled = pd.Series(labels, dtype=object).sample(frac=1, random_state=generator)
    groups = shuffled.groupby(shuffled, sort=False)
    quantile = (groups.cumcount() + 0.5) / groups.transform("size")
    return np.sort(quantile.sort_values(kind="stable").index.to_numpy()[:size])


@dataclass(frozen=True)
class Prepared:
    """A cleaned corpus and its tokens: all that can be known of a file before it is split.

    Attributes:
        corpus: the texts and labels.
        report: how many of each trap there were; see `clean`.
        types: `types[id]` is a token.
        ids: int32, the tokens of all texts in a row.
        lengths: int64, tokens per text.
    """

    corpus: Corpus
    report: dict[str, Any]
    types: list[str]
    ids: np.ndarray
    lengths: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def save(self, file: Path) -> None:
        """Write it all or nothing; see `write_arrays`."""
        corpus = self.corpus
        strings = {"texts": corpus.texts, "labels": corpus.labels, "classes": corpus.classes, "types": self.types}
        arrays = {name: np.frombuffer("\0".join(values).encode(), dtype=np.uint8) for name, values in strings.items()}
        if corpus.files is not None:
            arrays["files"] = corpus.files
        arrays["report"] = np.frombuffer(json.dumps(self.report).encode(), dtype=np.uint8)
        write_arrays(file, rows=corpus.rows, ids=self.ids, lengths=self.lengths, **arrays)

    @classmethod
    def load(cls, file: Path) -> Prepared | None:
        """What `save` wrote; None where there is nothing that can be trusted."""
        if (arrays := read_arrays(file)) is None:
            return None

        def text(name: str) -> str:
            return arrays[name].tobytes().decode()

        texts, labels, classes = (text(name).split("\0") for name in ("texts", "labels", "classes"))
        types = text("types").split("\0") if text("types") else []  # cleaned texts hold no NUL
        corpus = Corpus(texts, labels, arrays["rows"], classes, arrays.get("files"))
        return cls(corpus, json.loads(text("report")), types, arrays["ids"], arrays["lengths"])


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write a checksum and the arrays, all or nothing: a crash leaves the old file or none."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files are their maker's alone: the folder may be shared.
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as target:
            target.write(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getvalue())
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_arrays(file: Path) -> dict[str, np.ndarray] | None:
    """None if there is no file that can be read, or if it is not as `write_arrays` left it, which is logged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if not is_safe(file):
        logger.warning("the cache %s may be another user's work and is not read: see data.cache_dir", file)
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        logger.warning("the cache %s is damaged; it is made anew", file)
        return None
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as arrays:
        return dict(arrays)


class TextDataset(Dataset[Any]):
    """Encoded texts of one split; `dataset[positions]` is their padded batch.

    Args:
        ids: vocabulary indices of the whole corpus, one text after the other.
        starts, lengths: where in `ids` each text of this split starts, and how many of its tokens are kept.
        targets: class of each text.
        texts: as they are; of each, the first `CHARACTERS` characters are in a batch.
    """

    def __init__(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, targets: np.ndarray, texts: Sequence[str]
    ) -> None:
        self.ids, self.starts, self.lengths, self.targets = ids, starts, lengths, targets
        self.characters, self.character_lengths = code_points([text[:CHARACTERS] for text in texts])
        self.character_starts = np.cumsum(self.character_lengths) - self.character_lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        index = np.asarray(positions, dtype=np.int64)
        lengths = self.lengths[index]
        characters = pad(self.characters, self.character_starts[index], self.character_lengths[index])
        return {
            "inputs": torch.from_numpy(pad(self.ids, self.starts[index], lengths)),
            "characters": torch.from_numpy(characters),
            "lengths": torch.from_numpy(lengths.astype(np.int64)),
            "targets": torch.from_numpy(self.targets[index].astype(np.int64)),
            "index": torch.from_numpy(index),
        }

    def known_counts(self) -> np.ndarray:
        """How many of each text's tokens are in the vocabulary."""
        known = np.concatenate([[0], np.cumsum(self.ids != UNKNOWN)])
        return known[self.starts + self.lengths] - known[self.starts]


def code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all texts in a row, as Unicode code points (int32), and how many each text has."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(joined, dtype=np.int32), np.array([len(text) for text in texts], dtype=np.int64)


def pad(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Stretches of `ids` as rows of one int64 array, filled up with padding; at least one column."""
    columns = np.arange(max(1, lengths.max(initial=0)))
    valid = columns < lengths[:, None]
    rows = np.full(valid.shape, PADDING, dtype=np.int64)
    rows[valid] = ids[(starts[:, None] + columns)[valid]]
    return rows
