from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rnn_cells import GRU, LSTM, BiLSTM
from tasks import Identity, Pooling, SequenceModel, TokenEmbedding
from tasks.models import Dropout

KINDS = Pooling.KINDS
LENGTHS = torch.tensor([5, 0, 1, 3])  # of at most 5 steps, one sequence without any


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pool_one_by_one(pooling: Pooling, outputs: Tensor, final: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence by itself, over a list of its valid steps."""
    rows = []
    for number, length in enumerate(lengths.tolist()):
        steps = [outputs[number, step] for step in range(length)]
        if pooling.kind == "last":
            directions = outputs.shape[-1] // final.shape[-1]
            rows.append(torch.cat([final[len(final) - directions + at, number] for at in range(directions)]))
        elif not steps:
            rows.append(torch.zeros(pooling.output_size))
        elif pooling.kind in ("mean", "max", "max_mean"):
            mean = sum(steps, torch.zeros(outputs.shape[-1])) / length
            largest = torch.stack([max(column) for column in zip(*(step.unbind() for step in steps), strict=True)])
            rows.append({"mean": mean, "max": largest, "max_mean": torch.cat([largest, mean])}[pooling.kind])
        else:
            first, _, last = list[Any](pooling.score)
            grades = [(last.weight[0] @ torch.tanh(first.weight @ step + first.bias)).item() for step in steps]
            weights = torch.tensor(grades).softmax(dim=0)
            rows.append(sum((w * step for w, step in zip(weights, steps, strict=True)), torch.zeros(len(steps[0]))))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_matches_each_sequence_pooled_by_itself(kind: str) -> None:
    pooling, final = Pooling(kind, 6), torch.randn(4, 4, 3)  # two layers of two directions
    outputs = torch.randn(4, 5, 6) - 2  # below zero, so that a padding of zeros would win a maximum
    found = pooling(outputs, final, LENGTHS)
    torch.testing.assert_close(found, pool_one_by_one(pooling, outputs, final, LENGTHS), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_lengths_all_steps_count(kind: str) -> None:
    pooling, outputs, final = Pooling(kind, 6), torch.randn(4, 5, 6), torch.randn(4, 4, 3)
    assert torch.equal(pooling(outputs, final), pooling(outputs, final, torch.full((4,), 5)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_steps_has_finite_outputs_and_gradients(kind: str) -> None:
    model = SequenceModel(TokenEmbedding(9, 4), BiLSTM(4, 3), 2, kind)
    answers = model(torch.randint(1, 9, (4, 5)), LENGTHS)
    answers.square().sum().backward()
    assert answers.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    alone = model(torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]))
    torch.testing.assert_close(answers[1], alone[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_pooling_reach_valid_steps_only(kind: str) -> None:
    outputs = torch.randn(4, 5, 6, requires_grad=True)
    final = torch.randn(2, 4, 3, requires_grad=True)
    Pooling(kind, 6)(outputs, final, LENGTHS).square().sum().backward()
    if kind == "last":
        assert outputs.grad is None
        return
    assert outputs.grad is not None
    touched = outputs.grad.ne(0).any(dim=-1)
    valid = torch.arange(5) < LENGTHS[:, None]
    assert not touched[~valid].any()
    if kind != "max":
        assert touched[valid].all()


def test_last_is_the_end_of_the_forward_and_the_start_of_the_backward_direction() -> None:
    encoder = BiLSTM(4, 3, num_layers=2)
    x = torch.randn(3, 5, 4)
    lengths = torch.tensor([5, 1, 3])
    outputs, (hidden, _) = encoder(x, lengths=lengths)
    pooled = Pooling("last", 6)(outputs, hidden, lengths)
    for number, length in enumerate(lengths.tolist()):
        expected = torch.cat([outputs[number, length - 1, :3], outputs[number, 0, 3:]])
        torch.testing.assert_close(pooled[number], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", [partial(GRU, num_layers=2), BiLSTM], ids=["gru", "bilstm"])
def test_more_padding_does_not_change_the_answer(kind: str, encoder: type[LSTM]) -> None:
    model = SequenceModel(TokenEmbedding(9, 4, padding_index=0), encoder(4, 3), 2, kind).eval()
    tokens = torch.randint(1, 9, (4, 5)) * (torch.arange(5) < LENGTHS[:, None])
    longer = torch.cat([tokens, torch.zeros(4, 7, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(longer, LENGTHS), model(tokens, LENGTHS))
    other = torch.where(torch.arange(12) < LENGTHS[:, None], longer, 8)  # any token may fill up
    torch.testing.assert_close(model(other, LENGTHS), model(tokens, LENGTHS))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_nan_is_never_read(kind: str) -> None:
    model = SequenceModel(Identity(4), BiLSTM(4, 3), 2, kind)
    x = torch.randn(4, 5, 4)
    poisoned = torch.where((torch.arange(5) < LENGTHS[:, None])[..., None], x, torch.nan)
    answers = model(poisoned, LENGTHS)
    torch.testing.assert_close(answers, model(x, LENGTHS))
    answers.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_padding_tokens_vector_is_zero_and_stays_it() -> None:
    embedding = TokenEmbedding(5, 4, padding_index=2)
    assert embedding.output_size == 4
    tokens = torch.tensor([[0, 2, 4]])
    assert torch.equal(embedding(tokens)[0, 1], torch.zeros(4))
    embedding(tokens).sum().backward()
    torch.optim.SGD(embedding.parameters(), lr=1.0).step()
    assert torch.equal(embedding.weight[2], torch.zeros(4))
    assert embedding.weight[0].abs().sum() > 0


def test_token_dropout_makes_tokens_unknown_in_training_and_never_touches_padding() -> None:
    torch.manual_seed(0)
    embedding = TokenEmbedding(50, 1, padding_index=0, unknown_index=1, token_dropout=0.3)
    tokens = torch.randint(2, 50, (200, 30))
    tokens[:, 20:] = 0
    plain = embedding.weight[tokens][..., 0]
    found = embedding(tokens)[..., 0]
    unknown = found == embedding.weight[1, 0]
    assert torch.equal(found[~unknown], plain[~unknown])
    assert not unknown[:, 20:].any()
    assert unknown[:, :20].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(embedding.eval()(tokens)[..., 0], plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", Pooling.KINDS)
def test_pooling_works_in_mixed_precision(kind: str, dtype: torch.dtype) -> None:
    outputs, final = torch.randn(2, 3, 4), torch.randn(1, 2, 4)
    pooling = Pooling(kind, 4)
    with torch.autocast("cpu", dtype):
        pooled = pooling(outputs, final, torch.tensor([3, 1]))
    torch.testing.assert_close(pooled.float(), pooling(outputs, final, torch.tensor([3, 1])), atol=0.05, rtol=0.05)


def test_an_unknown_pooling_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="last, mean, max, max_mean, attention; got 'median'"):
        Pooling("median", 4)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_dropout_zeroes_each_feature_alone_with_its_probability_and_keeps_the_mean(p: float) -> None:
    x = torch.ones(1001, 999, requires_grad=True)  # no multiple of the four that share a random number
    dropped = Dropout(p)(x)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped)  # as x is 1
    zero = dropped == 0
    torch.testing.assert_close(dropped[~zero], torch.full_like(dropped[~zero], 1 / (1 - p)), rtol=1e-4, atol=0)
    spread = 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(zero.float().mean() - p) < spread
    for place in range(4):  # of the four
        assert abs(zero.flatten()[place::4].float().mean() - p) < 2 * spread
    for apart in (1, 2, 3, 4, 999):
        both = zero.flatten()[:-apart] & zero.flatten()[apart:]
        assert abs(both.float().mean() - p * p) < 2 * spread


@pytest.mark.parametrize("p", [0.0, 1e-9, 1 - 1e-9, 1.0])
def test_dropout_of_nothing_or_everything_is_torchs(p: float) -> None:
    x = torch.randn(5, 7, 3)
    assert torch.equal(Dropout(p)(x), torch.nn.functional.dropout(x, round(p)))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
