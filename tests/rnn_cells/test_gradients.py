"""Derivatives against finite differences, and what rounding does over many steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from rnn_cells import Cell, Recurrent


def check_gradients(layer, lengths):
    """gradcheck of outputs and final states by input, initial state and every parameter."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    states = [torch.randn(len(layer.cells), 2, 2, dtype=torch.float64) for _ in layer.cells[0].state_names]

    def function(x, *rest):
        state, weights = rest[: len(states)], rest[len(states) :]
        outputs, finals = functional_call(layer, dict(zip(names, weights, strict=True)), (x, state, lengths))
        return outputs, *(finals if isinstance(finals, tuple) else (finals,))

    x = torch.randn(2, 3, layer.input_size, dtype=torch.float64)
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *states, *parameters)]
    assert gradcheck(function, inputs)


@pytest.mark.parametrize("lengths", [None, [3, 1], [0, 2]], ids=["dense", "ragged", "with_empty"])
def test_gradients_match_finite_differences(build, layer_type, lengths):
    check_gradients(build(layer_type, 2, 2, bidirectional=True), lengths)


def test_gradients_match_finite_differences_in_a_stack_without_bias(build, layer_type):
    check_gradients(build(layer_type, 1, 2, num_layers=2, bias=False), [2, 3])


class MinGRU(Cell):
    """A user's own cell (Feng et al. 2024): z = sigmoid(x W_z + b_z); h = (1 - z) * h + z * (x W_n + b_n)."""

    num_gates = 2

    def recur(self, gates, state):
        z, n = gates.chunk(2, dim=-1)
        z = torch.sigmoid(z)
        return ((1 - z) * state[0] + z * n,)


@pytest.mark.parametrize("lengths", [None, [3, 1]], ids=["dense", "ragged"])
def test_gradients_of_a_users_own_cell_match_finite_differences(lengths):
    check_gradients(Recurrent(MinGRU, 2, 2, num_layers=2, bidirectional=True).double(), lengths)


def test_a_users_own_cell_runs_bidirectional_and_ragged():
    layer = Recurrent(MinGRU, 3, 4, num_layers=2, bidirectional=True).double()
    x, lengths = torch.randn(3, 5, 3, dtype=torch.float64), [2, 5, 1]
    outputs, state = layer(x, lengths=lengths)
    for index, length in enumerate(lengths):
        sequence, finals = x[index, :length], []
        for forwards, backwards in (layer.cells[:2], layer.cells[2:]):
            directions = []
            for cell, order in ((forwards, range(length)), (backwards, reversed(range(length)))):
                W, b = cell.get_parameter("weight_ih"), cell.get_parameter("bias_ih")
                h, hs = torch.zeros(4, dtype=torch.float64), [torch.empty(0)] * length
                for t in order:
                    z, n = (W @ sequence[t] + b).chunk(2)
                    h = hs[t] = torch.lerp(h, n, torch.sigmoid(z))
                directions.append(torch.stack(hs))
                finals.append(h)
            sequence = torch.cat(directions, dim=-1)
        torch.testing.assert_close(outputs[index, :length], sequence, rtol=0, atol=1e-12)
        torch.testing.assert_close(state[:, index], torch.stack(finals), rtol=0, atol=1e-12)


def test_float32_stays_close_to_float64_over_720_steps(build, layer_type):
    single = build(layer_type, 4, 16, dtype=torch.float32)
    double = copy.deepcopy(single).double()
    x = torch.randn(4, 720, 4)

    def run(layer, x):
        outputs, _ = layer(x)
        outputs[:, -1].sum().backward()
        return outputs, [parameter.grad for parameter in layer.parameters()]

    outputs, gradients = run(single, x)
    expected, expected_gradients = run(double, x.double())
    assert (outputs - expected).abs().max() < 2e-6
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert (gradient - exact).norm() < 1e-5 * exact.norm()
