"""New texts to batches, encoded as those that a model was trained on. B texts, T tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from .corpus import TextDataset, clean_text
from .text import Vocabulary, cutter


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as a data set whose batches hold what training's do; their targets say nothing.

    Attributes:
        dataset: `dataset[positions]` is a padded batch.
        cut: whether a text had more tokens than are kept, (B,).
        known_counts: how many of the tokens kept are in the vocabulary, (B,).
    """

    dataset: TextDataset
    cut: np.ndarray
    known_counts: np.ndarray


class TextEncoder:
    """Encodes texts as the data module with these facts does.

    Args:
        facts: of `TextDataModule`; `vocabulary`, `tokenizer` and `max_length` are used.
        cache_dir: for the tokenizer's own files, see `cache_folder`.
    """

    def __init__(self, facts: Mapping[str, Any], cache_dir: str | None = None) -> None:
        self.max_length: int = facts["max_length"]
        self.vocabulary = Vocabulary(facts["vocabulary"])
        self._cut = cutter(facts["tokenizer"], cache_dir)

    def tokens(self, text: str) -> list[str]:
        """The tokens that are kept of a cleaned text, and one more if there are more."""
        return list(islice((token for token in self._cut(text) if not token.isspace()), self.max_length + 1))

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode raw texts, one row per text whatever it holds."""
        cleaned = [clean_text(text) for text in texts]
        rows = [self.tokens(text) for text in cleaned]
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        lengths = np.minimum(counts, self.max_length)
        ids = self.vocabulary.encode(chain.from_iterable(row[: self.max_length] for row in rows))
        starts = np.cumsum(lengths) - lengths
        dataset = TextDataset(ids, starts, lengths, np.zeros(len(texts), dtype=np.int64), cleaned)
        return EncodedTexts(dataset, counts > self.max_length, dataset.known_counts())
