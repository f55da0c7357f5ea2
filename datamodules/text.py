"""Labelled texts to padded batches: clean, split, tokenise, count a vocabulary, pad. B texts, T tokens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from tqdm import tqdm

from .corpus import (
    OTHER,
    PADDING,
    UNKNOWN,
    Corpus,
    Prepared,
    TextDataset,
    check_classes,
    clean,
    in_proportion,
    join,
    look_alike,
    read_arrays,
    split_by_class,
    treat_small_classes,
    write_arrays,
)
from .formats import CsvFormat, text_columns
from .losses import check_losses
from .sampling import ResumableLoader, split_loader
from .sources import (
    SPLITS,
    DataError,
    Source,
    at_least,
    cache_folder,
    file_sha256,
    files_sha256,
    is_safe,
    one_of,
    path_text,
)
from .streaming import LINE, read_table, warn
from .synthetic import SMALLEST_REVIEWS, sample_reviews

logger = logging.getLogger(__name__)

SAMPLE, SAMPLE_SEED = "sample_reviews", 0
TOKENIZERS = ("jieba", "char", "whitespace")
SEEDS = 2**32  # of them, all that scikit-learn takes
KEPT = 8  # prepared files in the cache
RUNS_REMEMBERED, LONGEST_REMEMBERED = 100_000, 100  # runs whose words are remembered, characters of one


class TextDataModule(pl.LightningDataModule):
    """Texts of a table and their classes, split before anything is learned from them.

    A batch is a dict of int64 tensors: `inputs` (B, T), padded with 0 to the longest text of the batch; `lengths` (B,),
    0 for a text without a token; `characters` (B, C), the text in Unicode code points, padded with 0; `targets`
    (B,), positions in `facts["classes"]`; `index` (B,), for `describe`.
    The vocabulary knows the training texts alone.

    Args:
        name: of the data set.
        path, files, urls, sha256, on_missing: where the file is, see `Source`.
        val_path, test_path: files of these splits, if they have some for themselves; `path` is then that of the others.
            Of a text that several files hold under the same class, the first is kept.
        text_column, target: the columns of texts and of classes.
        unlabelled: `error` or `drop` for rows without a class.
        small_classes: `error`, `drop` or `merge` (into one, `other`) for classes with fewer rows than there are splits
            to be drawn.
        allow_loss: more than 10% of a file's rows without a text, or in the file of an earlier split as well, are a
            warning, not an error.
        tokenizer: `jieba` (Chinese words), `char` or `whitespace`.
        max_length: tokens kept of a text.
        min_frequency: how often a token must occur in the training texts to enter the vocabulary.
        max_vocabulary: entries at most, padding and unknown included.
        split: `stratified`, or `index%5`: test rows are those whose 0-based row number in the file is divisible by 5.
        val_fraction, test_fraction: of all rows kept; `index%5` makes no use of the second.
        split_seed: of the split, and of the choice under `limit`.
        batch_size, num_workers, seed: of the batches and the order of training.
        sample_size: rows of the built-in sample.
        cache_dir: for downloads and token ids, see `cache_folder`.
        limit: keep this many rows, with the classes in proportion, to try things out.
        english: class to its English name, for `facts`: not every machine has a font that shows Chinese.
        csv_format: how the file is written, see `CsvFormat`.

    Raises:
        DataError: in the constructor for a setting out of range, in `setup` for data that cannot be used.
    """

    def __init__(
        self,
        name: str,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        files: Sequence[str] = (),
        urls: Sequence[str] = (),
        sha256: Mapping[str, str] | None = None,
        on_missing: str = "sample",
        text_column: str = "review",
        target: str = "cat",
        unlabelled: str = "error",
        small_classes: str = "error",
        allow_loss: bool = True,
        tokenizer: str = "jieba",
        max_length: int = 256,
        min_frequency: int = 2,
        max_vocabulary: int = 50_000,
        split: str = "stratified",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        sample_size: int = 4000,
        cache_dir: str | None = None,
        limit: int | None = None,
        english: Mapping[str, str] | None = None,
        **csv_format: Any,
    ) -> None:
        super().__init__()
        one_of(tokenizer=(tokenizer, TOKENIZERS), split=(split, ("stratified", "index%5")))
        one_of(unlabelled=(unlabelled, ("error", "drop")), small_classes=(small_classes, ("error", "drop", "merge")))
        at_least(1, max_length=max_length, min_frequency=min_frequency, batch_size=batch_size)
        at_least(1, limit=1 if limit is None else limit)
        at_least(2, max_vocabulary=max_vocabulary)
        at_least(0, num_workers=num_workers, val_fraction=val_fraction, test_fraction=test_fraction)
        at_least(SMALLEST_REVIEWS, sample_size=sample_size)
        if not 0 <= split_seed < SEEDS:
            raise DataError(f"data.split_seed={split_seed} must be from 0 to {SEEDS - 1}")
        if val_fraction + test_fraction >= 1:
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave nothing to train on"
            )
        others = {split: other for split, other in (("val", val_path), ("test", test_path)) if other is not None}
        if others and path is None:
            raise DataError("data.val_path and data.test_path go with data.path, the file of the training split")
        if split == "index%5" and "test" in others:
            raise DataError("data.split=index%5 takes every fifth row for the test: leave it out, or data.test_path")
        place = (name, path, tuple(files), tuple(urls), dict(sha256 or {}), on_missing, SAMPLE, cache_dir)
        self.source = Source(*place, others)
        self.name, self.is_sample = self.source.title, False
        self.facts: dict[str, Any] = {}
        self.report: dict[str, Any] = {}
        self._format = CsvFormat(**csv_format).state()
        self._text_column, self._target, self._limit, self._sample_size = text_column, target, limit, sample_size
        self._unlabelled, self._small_classes = unlabelled, small_classes
        self._allow_loss = allow_loss
        self._tokenizer, self._max_length, self._cache_dir = tokenizer, max_length, cache_dir
        self._english = dict(english or {})
        self._vocabulary_limits = {"min_frequency": min_frequency, "max_vocabulary": max_vocabulary}
        self._split: dict[str, Any] = {
            "rule": split,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "seed": split_seed,
            **({"own": [*others]} if others else {}),
        }
        self._batching: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
        self._corpus: Corpus | None = None
        self._positions: dict[str, np.ndarray] = {}
        self._datasets: dict[str, TextDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Find, read, clean, split, tokenise and encode; a second call does nothing."""
        if self._datasets:
            return
        files = self.source.locate_all()
        file = files.get("train")
        if file is None:
            self.name, self.is_sample = SAMPLE, True
        content = files_sha256(files) if files else None
        data = self._prepared(files, content)
        corpus = data.corpus
        self._check_losses(files, data.report)
        self._warn_of_classes(corpus, data.report["small_classes"])
        names = {split: str(other) for split, other in files.items()} or {"train": SAMPLE}
        check_classes(corpus, names, data.report.get("not_in_training", {}))
        positions = self._positions_of(corpus, names["train"])

        seen = np.zeros(len(corpus), dtype=bool)
        seen[positions["train"]] = True
        counts = np.bincount(data.ids[np.repeat(seen, data.lengths)], minlength=len(data.types))
        vocabulary = Vocabulary.build(dict(zip(data.types, counts.tolist(), strict=True)), **self._vocabulary_limits)

        ids = vocabulary.encode(data.types)[data.ids].astype(np.int32)
        numbers = {label: number for number, label in enumerate(corpus.classes)}
        targets = np.array([numbers[label] for label in corpus.labels])
        kept = np.minimum(data.lengths, self._max_length)
        self._corpus, self._lengths, self._positions = corpus, data.lengths, positions
        self._datasets = {
            split: TextDataset(ids, data.starts[rows], kept[rows], targets[rows], corpus.take(rows).texts)
            for split, rows in positions.items()
        }
        self.facts = {
            "classes": corpus.classes,
            "target": self._target,
            "english": {name: self._english[name] for name in corpus.classes if name in self._english},
            "vocabulary": vocabulary.state(),
            "vocab_size": len(vocabulary),
            "padding_index": PADDING,
            "unknown_index": UNKNOWN,
            "tokenizer": self._tokenizer,
            "max_length": self._max_length,
        }
        self.report = {
            "name": self.name,
            "source": path_text(file) if file else f"built-in, {self._sample_size} rows, seed {SAMPLE_SEED}",
            "sha256": content,
            **data.report,
            **({"files": self._files_report(files, data.report["files"])} if len(files) > 1 else {}),
            "limit": self._limit,
            "rows_after_limit": None if self._limit is None else len(corpus),
            "split": self._split,
            "splits": {split: self._split_report(split) for split in SPLITS},
            "tokenizer": {"name": self._tokenizer, "version": _tokenizer_version(self._tokenizer)},
            "vocabulary": {
                **self._vocabulary_limits,
                "size": len(vocabulary),
                "counted_in": "train",
                "token_types_in_train": int((counts > 0).sum()),
            },
        }
        self._log_report()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled by `seed` and the epoch, texts of similar length together."""
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        """Every validation text once, in batches of similar length whose order is fixed and mixed."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Every test text once, in batches of similar length whose order is fixed and mixed."""
        return self._loader("test")

    def describe(self, split: str, index: np.ndarray) -> pd.DataFrame:
        """What the examples `index` of `split` are, one row each, in that order.

        Returns:
            `row`, the 0-based data row in the file; `text` as cleaned; `label`; `length` in tokens before truncation.
        """
        self.setup()
        assert self._corpus is not None
        positions = self._positions[split][np.asarray(index, dtype=np.int64)]
        chosen = self._corpus.take(positions)
        return pd.DataFrame(
            {"row": chosen.rows, "text": chosen.texts, "label": chosen.labels, "length": self._lengths[positions]}
        )

    def _loader(self, split: str) -> ResumableLoader:
        self.setup()
        dataset = self._datasets[split]
        return split_loader(dataset, split, self.trainer, lengths=dataset.lengths, **self._batching)

    def _prepared(self, files: Mapping[str, Path], content: str | None) -> Prepared:
        """The files cleaned and tokenised, from the cache if they were: known by content, settings and code."""
        origin = content or f"{self._sample_size} rows, seed {SAMPLE_SEED}"
        choice = None if self._limit is None else [self._limit, self._split["seed"]]
        tokenizer = [self._tokenizer, _tokenizer_version(self._tokenizer)]
        table = [self._format, [file.suffixes for file in files.values()], self._text_column, self._target]
        settings = [origin, table, self._unlabelled, self._small_classes, choice, tokenizer]
        key = hashlib.sha256(json.dumps(settings).encode())
        for module in ("corpus", "formats", "sources", "streaming", "synthetic", "text"):
            key.update(Path(__file__).with_name(f"{module}.py").read_bytes())
        cache = cache_folder(self._cache_dir) / f"corpus-{self._tokenizer}-{key.hexdigest()[:32]}.bin"
        if (data := Prepared.load(cache)) is not None:
            for split, file in files.items():
                warn(file, data.report["files"][split] if len(files) > 1 else data.report)
            return data
        corpus, traps = self._clean(files)
        if self._limit is not None and self._limit < len(corpus):
            parts = [""] * len(corpus) if corpus.files is None else map(str, corpus.files.tolist())
            strata = [label + part for label, part in zip(corpus.labels, parts, strict=True)]
            corpus = corpus.take(in_proportion(strata, self._limit, self._split["seed"]))
        corpus, traps["small_classes"] = treat_small_classes(corpus, self._small_classes, len(SPLITS) - len(files) + 1)
        types: dict[str, int] = {}
        rows = tokenize(corpus.texts, self._tokenizer, cache_dir=self._cache_dir, progress=True)
        ids = np.fromiter((types.setdefault(token, len(types)) for row in rows for token in row), dtype=np.int32)
        data = Prepared(corpus, traps, list(types), ids, np.array([len(row) for row in rows], dtype=np.int64))
        try:
            data.save(cache)
        except OSError as error:
            logger.warning("cannot keep the tokens in %s (%s): the next start tokenises again", cache, error)
        _sweep(cache, "corpus")
        return data

    def _positions_of(self, corpus: Corpus, where: str) -> dict[str, np.ndarray]:
        """The split, from the cache if it was drawn before: the library that draws it takes a second to import."""
        key = hashlib.sha256(json.dumps([self._split, version("scikit-learn"), corpus.labels, corpus.classes]).encode())
        key.update(b"" if corpus.files is None else corpus.files.tobytes())
        key.update(corpus.rows.tobytes() + Path(__file__).with_name("corpus.py").read_bytes())
        cache = cache_folder(self._cache_dir) / f"split-{key.hexdigest()[:32]}.bin"
        if (positions := read_arrays(cache)) is None:
            positions = split_by_class(corpus, where, **self._split)
            with contextlib.suppress(OSError):  # the next start draws it again
                write_arrays(cache, **positions)
            _sweep(cache, "split")
        return positions

    def _clean(self, files: Mapping[str, Path]) -> tuple[Corpus, dict[str, Any]]:
        columns = (self._text_column, self._target)
        if len(files) < 2:
            file = files.get("train")
            return clean(self._read(file), *columns, str(file or self.name), self._unlabelled)
        cleaned = {
            split: clean(self._read(file), *columns, str(file), self._unlabelled) for split, file in files.items()
        }
        return join(cleaned)

    def _check_losses(self, files: Mapping[str, Path], report: Mapping[str, Any]) -> None:
        empty = f"have no text in column {self._text_column!r} (data.text_column)"
        if len(files) < 2:
            losses = [(report["empty_dropped"], report["rows_read"], "rows", empty)]
            check_losses(losses, self._allow_loss, str(files.get("train", self.name)))
            return
        for split, file in files.items():
            counts, repeated = report["files"][split], report["duplicates_across_files"].get(split, 0)
            earlier = " or ".join(str(files[other]) for other in SPLITS[: SPLITS.index(split)] if other in files)
            again = f"occur in {earlier} as well (same class, same text)"
            if repeated == counts["rows_kept"]:
                raise DataError(
                    f"{file}: all of its {repeated} different rows {again}, so none is left for the {split} split. "
                    f"Give data.{split}_path a file of other rows, or leave it out: the split is then drawn from "
                    f"{files['train']}"
                )
            losses = [
                (counts["empty_dropped"], counts["rows_read"], f"rows of the {split} file", empty),
                (
                    repeated,
                    counts["rows_kept"],
                    f"different rows of the {split} file",
                    f"{again}: delete them from one of the files",
                ),
            ]
            check_losses(losses, self._allow_loss, str(file))

    def _warn_of_classes(self, corpus: Corpus, small: Mapping[str, int]) -> None:
        if small:
            done = f"are {OTHER!r} now" if self._small_classes == "merge" else "are left out"
            logger.warning("%s: classes of few rows %s (data.small_classes): %s", self.name, done, dict(small))
        counts = Counter(corpus.labels)
        for group in look_alike(corpus.classes):
            shown = ", ".join(f"{name!a} ({counts[name]} rows)" for name in group)
            logger.warning(
                "%s: classes look alike, and are told apart by signs that can't be seen: %s. If they are one, make "
                "their labels the same in the file",
                self.name, shown,
            )  # fmt: skip

    def _read(self, file: Path | None) -> pd.DataFrame:
        columns = text_columns(self._text_column, self._target)
        if file is not None:
            return read_table(file, columns=columns, **self._format)
        frame = sample_reviews(self._sample_size, seed=SAMPLE_SEED)
        if missing := [column for column in columns if column not in frame]:
            raise DataError(f"the built-in sample has no columns {missing}, only {list(frame)}: give data.path a file")
        frame[LINE] = np.arange(len(frame)) + 2
        return frame

    def _files_report(self, files: Mapping[str, Path], reports: Mapping[str, Any]) -> dict[str, Any]:
        return {
            split: {"source": path_text(file), "sha256": file_sha256(file), **reports[split]}
            for split, file in files.items()
        }

    def _split_report(self, split: str) -> dict[str, Any]:
        dataset, lengths = self._datasets[split], self._lengths[self._positions[split]]
        classes = self.facts["classes"]
        support = np.bincount(dataset.targets, minlength=len(classes)).tolist()
        return {
            "rows": len(dataset),
            "classes": dict(zip(classes, support, strict=True)),
            "truncated": int((lengths > self._max_length).sum()),
            "without_tokens": int((lengths == 0).sum()),
            "only_unknown_tokens": int(((dataset.known_counts() == 0) & (dataset.lengths > 0)).sum()),
        }

    def _log_report(self) -> None:
        report, splits = self.report, self.report["splits"]
        traps = [
            (report["nul_removed"], "NUL characters removed"),
            (report["bom_removed"], "byte order marks removed"),
            (report["unlabelled_dropped"], "texts without a class dropped"),
            (report["empty_dropped"], "empty texts dropped"),
            (report["duplicates_dropped"], "exact duplicates (same class, same text) dropped"),
            *(
                (count, f"texts of the {split} file dropped that an earlier file holds")
                for split, count in report.get("duplicates_across_files", {}).items()
            ),
            (report["conflicting_rows"], f"rows kept whose text stands under several {self._target}"),
            *((splits[split]["truncated"], f"{split} texts cut to {self._max_length} tokens") for split in SPLITS),
            *((splits[split]["without_tokens"], f"{split} texts without a token") for split in SPLITS),
            *((splits[split]["only_unknown_tokens"], f"{split} texts of unknown tokens only") for split in SPLITS),
        ]
        logger.info(
            "%s: %d rows read; %s; %s; vocabulary of %d",
            self.name,
            report["rows_read"],
            "; ".join(f"{count} {what}" for count, what in traps if count) or "nothing to mend",
            ", ".join(f"{split} {splits[split]['rows']}" for split in SPLITS),
            self.facts["vocab_size"],
        )
        for split in SPLITS:
            if absent := [name for name, support in splits[split]["classes"].items() if not support]:
                logger.warning("%s: the %s split has no row of %s", self.name, split, absent)


class Vocabulary:
    """Tokens and their indices; 0 is padding, 1 stands for every token that is not in it."""

    SPECIAL = ("<pad>", "<unk>")

    def __init__(self, tokens: Sequence[str]) -> None:
        if tuple(tokens[:2]) != self.SPECIAL:
            raise ValueError(f"a vocabulary starts with {self.SPECIAL}, not with {tuple(tokens[:2])}")
        self._tokens = list(tokens)
        # Texts may contain "<pad>" literally: it is a word like any other and unknown, never padding.
        self._index = {token: index for index, token in enumerate(tokens) if index > UNKNOWN}

    @classmethod
    def build(cls, counts: Mapping[str, int], min_frequency: int = 1, max_vocabulary: int = 50_000) -> Vocabulary:
        """The most frequent tokens first, equally frequent ones in the order of their characters."""
        frequent = [
            token for token, count in counts.items() if count >= max(1, min_frequency) and token not in cls.SPECIAL
        ]
        frequent.sort(key=lambda token: (-counts[token], token))
        return cls([*cls.SPECIAL, *frequent[: max_vocabulary - len(cls.SPECIAL)]])

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Indices of tokens, int64 (T,)."""
        return np.fromiter((self._index.get(token, UNKNOWN) for token in tokens), dtype=np.int64)

    def state(self) -> list[str]:
        """All entries in the order of their indices: `Vocabulary(vocabulary.state())` is the same one."""
        return list(self._tokens)


def tokenize(
    texts: Sequence[str], tokenizer: str, *, cache_dir: str | None = None, progress: bool = False
) -> list[list[str]]:
    """The tokens of each text, white space dropped; a text may have none.

    Args:
        texts: cleaned texts.
        tokenizer: one of `TOKENIZERS`.
        cache_dir: for the tokenizer's own files, see `cache_folder`.
        progress: show a progress bar if there is a terminal.
    """
    cut = cutter(tokenizer, cache_dir)
    shown = tqdm(texts, desc=f"tokenising ({tokenizer})", unit=" texts", disable=None if progress else True)
    return [[token for token in cut(text) if not token.isspace()] for text in shown]


def cutter(tokenizer: str, cache_dir: str | None = None) -> Callable[[str], Iterable[str]]:
    """What cuts a text into tokens, white space among them, one after the other.

    jieba first splits a text into runs of letters, digits and Chinese characters and what is between them, and cuts
    each for itself: the words of runs that occur again and again are remembered.

    Args:
        tokenizer: one of `TOKENIZERS`.
        cache_dir: for the tokenizer's own files, see `cache_folder`.
    """
    one_of(tokenizer=(tokenizer, TOKENIZERS))
    if tokenizer != "jieba":
        return list if tokenizer == "char" else str.split
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own source warns on newer Pythons
        import jieba
    jieba.setLogLevel(logging.WARNING)
    jieba.dt.tmp_dir = str(_folder_of_jieba(cache_folder(cache_dir)))  # pyright: ignore[reportAttributeAccessIssue]

    @lru_cache(RUNS_REMEMBERED)
    def cut_run(run: str) -> tuple[str, ...]:
        return tuple(jieba.cut(run))

    def cut(text: str) -> Iterator[str]:
        for run in jieba.re_han_default.split(text):
            yield from cut_run(run) if len(run) <= LONGEST_REMEMBERED else jieba.cut(run)

    return cut


def _folder_of_jieba(cache: Path) -> Path:
    """Where jieba keeps its dictionary, which decides how texts are cut: where nobody else can have put another one."""
    dictionary = cache / "jieba.cache"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK) and (is_safe(dictionary) or not os.path.lexists(dictionary)):
            return cache
    except OSError:
        pass
    return Path(_private_folder().name)


@lru_cache
def _private_folder() -> TemporaryDirectory[str]:
    """A folder of this process, removed at its end."""
    return TemporaryDirectory(prefix="jieba-")


def _tokenizer_version(tokenizer: str) -> str:
    return version("jieba") if tokenizer == "jieba" else "1"


def _sweep(newest: Path, kind: str) -> None:
    """Delete old files of the cache beside the `newest`: other settings, other data or other code made them."""
    with contextlib.suppress(OSError):  # another process sweeps as well, or the folder is not ours
        others = [file for file in newest.parent.glob(f"{kind}-*.bin") if file != newest]
        for old in sorted(others, key=lambda file: file.stat().st_mtime)[: -(KEPT - 1)]:
            old.unlink()
