from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rnn_cells import GRU, BiLSTM
from tasks import ClassificationTask, Mean, TokenEmbedding
from tasks.attribution import Attribution, attribute, explains
from tasks.ngrams import NgramVotes

pytest.importorskip("captum")
FACTS = {"classes": ["a", "b", "c"], "vocab_size": 50, "padding_index": 0, "unknown_index": 1}


def build(encoder: Any, pooling: str, ngrams: dict[str, Any] | None = None, members: int = 1) -> ClassificationTask:
    torch.manual_seed(0)
    task = ClassificationTask(
        FACTS,
        inputs=partial(TokenEmbedding, embedding_dim=8),
        encoder=encoder,
        pooling=pooling,
        ngrams=ngrams,
        members=members,
        optimizer=torch.optim.SGD,  # pyright: ignore[reportArgumentType]
    )
    votes: Any = [task.votes, *task.other_votes] if task.votes is not None else []
    for each in votes:
        torch.nn.init.normal_(each.votes.weight)
    return task.eval()


def text(tokens: int = 12, characters: int = 30) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "inputs": torch.randint(1, 50, (1, tokens), generator=generator),
        "lengths": torch.tensor([tokens]),
        "characters": torch.randint(1, 9000, (1, characters), generator=generator),
    }


def total(found: Attribution) -> float:
    return float(found.tokens.sum() + found.characters.sum())


NGRAMS = {"characters": 3, "words": 2, "bits": 12}
NETWORKS = {
    "bilstm": (partial(BiLSTM, hidden_size=6), "max_mean", None),
    "votes": (partial(GRU, hidden_size=6), "max", NGRAMS),
    "mean": (Mean, "mean", None),
    "three networks": (partial(GRU, hidden_size=6), "max", NGRAMS, 3),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_attributions_add_up_to_the_difference_of_the_logits(network: str) -> None:
    task, batch = build(*NETWORKS[network]), text()
    with torch.no_grad():
        logits = task.logits(batch)[0]
        nothing = torch.zeros_like(batch["inputs"])
        without = task.of_members(nothing, batch["lengths"]).mean(dim=0)[0]
    for target in range(3):
        found = attribute(task, batch, target)
        assert found.logit == pytest.approx(logits[target].item(), abs=1e-4)
        assert found.baseline == pytest.approx(without[target].item(), abs=1e-5)
        difference = found.logit - found.baseline
        assert total(found) == pytest.approx(difference, abs=0.011 * max(1, abs(difference)))
        assert found.tokens.shape == (12,)
        assert found.characters.shape == (30,)


def test_of_a_linear_model_a_tokens_part_is_its_weight_times_its_vector() -> None:
    task, batch = build(*NETWORKS["mean"]), text()
    model: Any = task.model
    vectors = model.inputs.weight[batch["inputs"][0]]
    expected = vectors @ model.head.weight[1] / 12
    assert attribute(task, batch, 1).tokens == pytest.approx(expected.detach().double().numpy(), abs=1e-5)


def test_shares_of_votes_are_those_of_each_n_gram_by_itself() -> None:
    votes = NgramVotes(2, **NGRAMS).eval()
    torch.nn.init.normal_(votes.votes.weight)
    words, characters = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[11, 12, 13, 0, 0]])
    expected = {"characters": torch.zeros(5, 2), "words": torch.zeros(4, 2)}
    alone = {"characters": _all([11, 12, 13]), "words": [ngram for ngram in _all([5, 6, 7]) if len(ngram) < 3]}
    count = sum(map(len, alone.values()))
    for kind, ngrams in alone.items():
        sequence = (characters if kind == "characters" else words)[0].tolist()
        for ngram in ngrams:
            with torch.no_grad():
                vote = _vote(votes, kind, ngram)
            at = next(i for i in range(len(sequence)) if sequence[i : i + len(ngram)] == ngram)
            expected[kind][at : at + len(ngram)] += vote / len(ngram) / count**0.5
    with torch.no_grad():
        of_characters, of_words = votes.shares(characters, words)
        whole = votes(votes.find(characters, words))
    torch.testing.assert_close(of_characters[0], expected["characters"])
    torch.testing.assert_close(of_words[0], expected["words"])
    torch.testing.assert_close(of_characters.sum(dim=1) + of_words.sum(dim=1), whole)


def _all(ngram: list[int]) -> list[list[int]]:
    """All n-grams inside one."""
    return [ngram[i : i + size] for size in range(1, len(ngram) + 1) for i in range(len(ngram) - size + 1)]


def _vote(votes: NgramVotes, kind: str, ngram: list[int]) -> Tensor:
    """Of one n-gram: what a text of nothing else gets, less the votes of the shorter ones in it."""
    own = NgramVotes(2, **{**NGRAMS, "characters": 0, "words": 0, kind: len(ngram)}).eval()
    own.votes = votes.votes
    empty, given = torch.zeros(1, 1, dtype=torch.long), torch.tensor([ngram])
    found = own.find(*((given, empty) if kind == "characters" else (empty, given)))
    whole = own(found)[0] * len(_all(ngram)) ** 0.5
    return whole - sum((_vote(votes, kind, part) for part in _all(ngram) if part != ngram), torch.zeros(2))


def test_only_networks_with_an_embedding_can_be_explained() -> None:
    assert explains(build(*NETWORKS["votes"]))
    assert not explains(torch.nn.Linear(2, 2))
