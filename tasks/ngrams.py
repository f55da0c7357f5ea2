"""Votes of a text's n-grams, beside what a network reads out of its order.

Legend: B texts, T tokens or characters, O classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

MIXERS = (0x9E3779B97F4A7C15 - (1 << 64), 0x6A09E667F3BCC909, 0x3C6EF372FE94F82B)  # odd 64-bit numbers, signed


class NgramVotes(nn.Module):
    """A linear classifier of hashed n-grams, trained together with the network whose logits it is added to.

    logits = scale / sqrt(N) * sum over the text's N n-grams g of W[hash(g)], the shallow half of a wide and deep model
    (Cheng et al. 2016) on hashed features (Weinberger et al. 2009): what TF-IDF classifiers know, namely that a single
    word or a run of characters can settle the class. W starts at zero.

    Args:
        outputs: O, number of classes.
        characters: longest n-gram of characters; 0 for none.
        words: longest n-gram of words; 0 for none.
        bits: n-grams share 2^bits rows of W.
        dropout: share of n-grams that are left out, in training.
        scale: of the votes: the larger, the faster they learn.
    """

    def __init__(
        self,
        outputs: int,
        characters: int = 2,
        words: int = 2,
        bits: int = 18,
        dropout: float = 0.5,
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.characters, self.words, self.bits, self.dropout, self.scale = characters, words, bits, dropout, scale
        self.votes = nn.EmbeddingBag((1 << bits) + 1, outputs, mode="sum", padding_idx=0)
        nn.init.zeros_(self.votes.weight)

    def find(self, characters: Tensor, words: Tensor) -> Tensor:
        """The rows of W for characters (B, C) and words (B, T), numbers with 0 for padding: (B, N), 0 for none."""
        return torch.cat([rows for _, _, rows in self._rows(characters, words)], dim=1)

    def forward(self, found: Tensor) -> Tensor:
        """The rows of W that were found (B, N) to logits (B, O)."""
        if self.training and self.dropout:
            found = found * (torch.rand(found.shape, device=found.device) >= self.dropout)
        count = (found > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return self.scale * self.votes(found) / count.sqrt()

    def shares(self, characters: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """What each character (B, C, O) and each word (B, T, O) adds to the logits: an n-gram's vote, shared evenly."""
        each = [(salt, size, rows) for salt, size, rows in self._rows(characters, words)]
        count = sum((rows > 0).sum(dim=1) for _, _, rows in each)
        scale = self.scale / torch.as_tensor(count).clamp(min=1).sqrt()[:, None, None]
        outputs = self.votes.weight.shape[1]
        shares = tuple(scale.new_zeros((*sequence.shape, outputs)) for sequence in (characters, words))
        for salt, size, rows in each:
            vote = scale * self.votes.weight[rows] * (rows > 0).unsqueeze(-1) / size
            for offset in range(size):
                shares[salt][:, offset : offset + rows.shape[1]] += vote
        return shares[0], shares[1]

    def _rows(self, characters: Tensor, words: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """For n-grams of characters (0) and words (1), of each size: where in W they vote, 0 where there is padding."""
        for salt, (sequence, longest) in enumerate(((characters, self.characters), (words, self.words))):
            for size in range(1, min(longest, sequence.shape[1]) + 1):
                rows = (_hashes(sequence, size, salt) & ((1 << self.bits) - 1)).where(_whole(sequence, size), -1)
                yield salt, size, 1 + rows


def _hashes(sequence: Tensor, size: int, salt: int) -> Tensor:
    """A pseudo-random number for each run of `size` numbers: (B, T - size + 1), arithmetic modulo 2^64."""
    steps = sequence.shape[1] - size + 1
    mixed = torch.full_like(sequence[:, :steps], 8 * salt + size)
    for offset in range(size):
        mixed = (mixed ^ sequence[:, offset : offset + steps]) * MIXERS[0]
        mixed = (mixed ^ (mixed >> 29)) * MIXERS[1]
    return (mixed ^ (mixed >> 32)) * MIXERS[2] >> 20


def _whole(sequence: Tensor, size: int) -> Tensor:
    """Which runs of `size` numbers hold no padding, which is behind everything else."""
    return sequence[:, size - 1 :] != 0
