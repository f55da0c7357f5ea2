from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tasks import NgramVotes
from tasks.ngrams import _hashes


def padded(rows: list[list[int]], width: int = 0) -> Tensor:
    width = max([width, *map(len, rows)])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def runs(row: list[int], longest: int) -> list[list[int]]:
    return [row[start : start + size] for size in range(1, longest + 1) for start in range(len(row) - size + 1)]


def logits(model: NgramVotes, characters: Tensor, words: Tensor) -> Tensor:
    return model(model.find(characters, words))


def trained(**options: int) -> NgramVotes:
    """With votes that tell all rows apart."""
    votes = NgramVotes(3, **options).eval()
    torch.nn.init.normal_(votes.votes.weight)
    return votes


CHARACTERS = [[20013, 25991, 97, 98, 97], [97, 98], [97], []]
WORDS = [[2, 3, 2], [1], [4, 2], []]


@pytest.mark.parametrize(("characters", "words"), [(4, 2), (1, 0), (0, 3), (8, 8)])
def test_logits_are_the_scaled_sum_of_the_votes_of_every_ngram(characters: int, words: int) -> None:
    model = trained(characters=characters, words=words)
    found = logits(model, padded(CHARACTERS), padded(WORDS))
    for number, rows in enumerate(zip(CHARACTERS, WORDS, strict=True)):
        votes = [
            model.votes.weight[1 + int(_hashes(torch.tensor([gram]), len(gram), salt)) % 2**18]
            for salt, (row, longest) in enumerate(zip(rows, (characters, words), strict=True))
            for gram in runs(row, longest)
        ]
        expected = 30 * torch.stack(votes).sum(dim=0) / math.sqrt(len(votes)) if votes else torch.zeros(3)
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)


def test_more_padding_changes_nothing() -> None:
    model = trained()
    expected = logits(model, padded(CHARACTERS), padded(WORDS))
    torch.testing.assert_close(logits(model, padded(CHARACTERS, width=40), padded(WORDS, width=9)), expected)


def test_hashes_spread_and_tell_order_length_and_kind_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(1, 200), torch.arange(1, 200))
    rows = _hashes(pairs, 2, 0).flatten() % 2**18
    expected = 2**18 * (1 - math.exp(-len(pairs) / 2**18))  # rows that are hit when all are equally likely
    assert len(rows.unique()) == pytest.approx(expected, rel=0.01)
    one, two = torch.randint(1, 9999, (1, 3), generator=generator), torch.randint(1, 9999, (1, 3), generator=generator)
    assert int(_hashes(one, 3, 0)) != int(_hashes(one.flip(1), 3, 0))
    assert int(_hashes(one, 3, 0)) != int(_hashes(one, 3, 1))
    assert int(_hashes(one[:, :1], 1, 0)) != int(_hashes(one[:, :2], 2, 0))
    assert int(_hashes(one, 3, 0)) != int(_hashes(two, 3, 0))


def test_training_leaves_ngrams_out_and_testing_none() -> None:
    model = trained(dropout=0.5)  # type: ignore[arg-type]
    texts, words = padded([list(range(1, 200))]), padded([[1]])
    torch.manual_seed(0)
    whole = logits(model, texts, words)
    torch.testing.assert_close(logits(model, texts, words), whole)
    model.train()
    assert not torch.allclose(logits(model, texts, words), whole)


def test_votes_learn_that_one_run_of_characters_settles_the_class() -> None:
    torch.manual_seed(0)
    model = NgramVotes(2, characters=2, words=0)
    texts = torch.randint(100, 120, (1024, 12))
    texts[::2, 5:7] = torch.tensor([7, 8])
    texts[1::2, 5:7] = torch.tensor([8, 7])
    targets, words = torch.arange(1024) % 2, torch.ones(1024, 1, dtype=torch.int64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(model, texts, words), targets).backward()
        optimizer.step()
    fresh = torch.randint(100, 120, (1024, 12), generator=torch.Generator().manual_seed(1))
    fresh[::2, 2:4] = torch.tensor([7, 8])
    fresh[1::2, 2:4] = torch.tensor([8, 7])
    assert (logits(model.eval(), fresh, words).argmax(dim=1) == targets).float().mean() > 0.98
