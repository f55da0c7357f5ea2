"""Sequences of unequal length: each gives what it gives alone, and padding is never read."""

from __future__ import annotations

import pytest
import torch

from rnn_cells import RNN, Cell, scan

BATCH, STEPS, INPUT, HIDDEN = 5, 6, 3, 4
LENGTHS = [4, 0, 6, 1, 3]


def random_batch(layer):
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    state = tuple(torch.randn(len(layer.cells), BATCH, HIDDEN, dtype=torch.float64) for _ in layer.cells[0].state_names)
    return x, state


def run(layer, x, state, lengths):
    """Outputs, final states, and the gradients of a fixed function of both for x, states and parameters."""
    x = x.clone().requires_grad_()
    state = tuple(tensor.clone().requires_grad_() for tensor in state)
    outputs, finals = layer(x, state, lengths)
    finals = finals if isinstance(finals, tuple) else (finals,)
    loss = outputs.square().sum() + sum(final.square().sum() for final in finals)
    gradients = torch.autograd.grad(loss, [x, *state, *layer.parameters()])
    return outputs, finals, gradients


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2], ids=["L1", "L2"])
def test_each_sequence_gives_what_it_gives_alone(build, layer_type, num_layers, bidirectional):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=num_layers, bidirectional=bidirectional)
    x, state = random_batch(layer)
    outputs, finals, gradients = run(layer, x, state, LENGTHS)

    x, *initial = [tensor.requires_grad_() for tensor in (x, *state)]
    loss = torch.zeros(())
    for b, length in enumerate(LENGTHS):
        alone, final = torch.zeros(1, 0, layer.output_size), tuple(tensor[:, b : b + 1] for tensor in initial)
        if length:
            alone, final = layer(x[b : b + 1, :length], final)
            final = final if isinstance(final, tuple) else (final,)
        torch.testing.assert_close(outputs[b, :length], alone[0].to(outputs), rtol=0, atol=1e-10)
        assert torch.all(outputs[b, length:] == 0)
        for ours, expected in zip(finals, final, strict=True):
            torch.testing.assert_close(ours[:, b : b + 1], expected, rtol=0, atol=1e-10)
        loss = loss + alone.square().sum() + sum(tensor.square().sum() for tensor in final)
    expected = torch.autograd.grad(loss, [x, *initial, *layer.parameters()])
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-10)


def test_sequences_of_length_zero_keep_their_state_and_learn_nothing(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, state = random_batch(layer)
    outputs, finals, (x_gradient, *rest) = run(layer, x, state, [0] * BATCH)
    assert torch.all(outputs == 0)
    torch.testing.assert_close(finals, state, rtol=0, atol=0)
    assert torch.all(x_gradient == 0)
    for gradient, tensor in zip(rest, state, strict=False):
        torch.testing.assert_close(gradient, 2 * tensor, rtol=0, atol=1e-12)
    assert all(torch.all(gradient == 0) for gradient in rest[len(state) :])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "minus_inf"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
def test_padding_changes_neither_results_nor_gradients(build, layer_type, bidirectional, poison):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=bidirectional)
    x, state = random_batch(layer)
    padding = torch.arange(STEPS) >= torch.tensor(LENGTHS)[:, None]
    clean = run(layer, x.masked_fill(padding[..., None], 0), state, LENGTHS)
    poisoned = run(layer, x.masked_fill(padding[..., None], poison), state, LENGTHS)
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=1e-12)  # NaN equals nothing here, not even NaN
    assert torch.all(poisoned[2][0][padding] == 0)


def test_equal_lengths_are_the_same_as_none(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, state = random_batch(layer)
    torch.testing.assert_close(run(layer, x, state, [STEPS] * BATCH), run(layer, x, state, None), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["tuple", "int32", "int64", "uint8"])
def test_lengths_may_be_any_integers(build, layer_type, kind):
    layer = build(layer_type, INPUT, HIDDEN, bidirectional=True)
    x, state = random_batch(layer)
    lengths = tuple(LENGTHS) if kind == "tuple" else torch.tensor(LENGTHS, dtype=getattr(torch, kind))
    torch.testing.assert_close(run(layer, x, state, lengths), run(layer, x, state, LENGTHS), rtol=0, atol=0)


def test_order_of_the_batch_does_not_matter(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, state = random_batch(layer)
    outputs, finals, _ = run(layer, x, state, LENGTHS)
    order = torch.randperm(BATCH)
    shuffled = tuple(tensor[:, order] for tensor in state)
    shuffled_outputs, shuffled_finals, _ = run(layer, x[order], shuffled, torch.tensor(LENGTHS)[order])
    torch.testing.assert_close(shuffled_outputs, outputs[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(shuffled_finals, tuple(f[:, order] for f in finals), rtol=0, atol=1e-12)


def flip_valid(sequences, lengths):
    """Time-first sequences with the first `lengths[b]` steps of each in opposite order."""
    flipped = sequences.clone()
    for b, length in enumerate(lengths):
        flipped[:length, b] = sequences[:length, b].flip(0)
    return flipped


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
def test_reverse_scan_is_flip_scan_flip(build, layer_type, lengths):
    layer = build(layer_type, INPUT, HIDDEN)
    cell = layer.cells[0]
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64)
    state = tuple(torch.randn(BATCH, HIDDEN, dtype=torch.float64) for _ in cell.state_names)
    tensor = None if lengths is None else torch.tensor(lengths)
    flips = lengths or [STEPS] * BATCH
    outputs, finals = scan(cell, x, state, tensor, reverse=True, backend=layer.backend)
    expected, expected_finals = scan(cell, flip_valid(x, flips), state, tensor, backend=layer.backend)
    torch.testing.assert_close(outputs, flip_valid(expected, flips), rtol=0, atol=1e-12)
    torch.testing.assert_close(finals, expected_finals, rtol=0, atol=1e-12)


class Sum(Cell):
    """h = h + x."""

    num_gates = 1

    def project(self, x):
        return x

    def recur(self, gates, state):
        return (state[0] + gates,)


def test_scan_of_a_sum_gives_prefix_sums_and_in_reverse_suffix_sums():
    x = torch.tensor([[1, 2, 4, 8], [16, 32, torch.nan, torch.nan]]).T.unsqueeze(-1)  # (T, B, 1)
    lengths = torch.tensor([4, 2])
    outputs, (final,) = scan(Sum(1, 1), x, lengths=lengths)
    assert outputs.squeeze(-1).T.tolist() == [[1, 3, 7, 15], [16, 48, 0, 0]]
    assert final.squeeze(-1).tolist() == [15, 48]
    outputs, (final,) = scan(Sum(1, 1), x, lengths=lengths, reverse=True)
    assert outputs.squeeze(-1).T.tolist() == [[15, 14, 12, 8], [48, 32, 0, 0]]
    assert final.squeeze(-1).tolist() == [15, 48]


def test_inputs_are_left_as_they_were(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, state = random_batch(layer)
    lengths = torch.tensor(LENGTHS)
    copies = [tensor.clone() for tensor in (x, *state, lengths)]
    layer(x, state, lengths)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((x, *state, lengths), copies, strict=True))


def test_an_empty_batch_gives_empty_results(build):
    layer = build(RNN, INPUT, HIDDEN, bidirectional=True)
    outputs, state = layer(torch.zeros(0, STEPS, INPUT, dtype=torch.float64), lengths=torch.zeros(0, dtype=torch.int64))
    assert outputs.shape == (0, STEPS, 2 * HIDDEN)
    assert state.shape == (2, 0, HIDDEN)
