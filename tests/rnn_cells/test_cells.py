from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from rnn_cells import GRU, LSTM, RNN, Cell, GRUCell, LSTMCell, Recurrent, RNNCell

CELLS = {"RNN": RNNCell, "GRU": GRUCell, "GRU_reset_after": partial(GRUCell, reset_after=True), "LSTM": LSTMCell}
every_cell = pytest.mark.parametrize("cell_type", CELLS.values(), ids=CELLS)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def blocks(cell):
    """The matrices and biases of the equations, one per gate: W, U, b (input part), c (recurrent part)."""
    parameters = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    return ([block.T for block in np.split(p.detach().numpy(), cell.num_gates)] for p in parameters)


def rnn_equations(cell, x, h):
    (W,), (U,), (b,), (c,) = blocks(cell)
    return (np.tanh(x @ W + h @ U + b + c),)


def gru_equations(cell, x, h):
    (W_r, W_z, W_n), (U_r, U_z, U_n), (b_r, b_z, b_n), (c_r, c_z, c_n) = blocks(cell)
    r = sigmoid(x @ W_r + h @ U_r + b_r + c_r)
    z = sigmoid(x @ W_z + h @ U_z + b_z + c_z)
    past = r * (h @ U_n + c_n) if cell.reset_after else (r * h) @ U_n + c_n
    n = np.tanh(x @ W_n + b_n + past)
    return (z * h + (1 - z) * n,)


def lstm_equations(cell, x, h, c):
    (W_i, W_f, W_g, W_o), (U_i, U_f, U_g, U_o), (b_i, b_f, b_g, b_o), (c_i, c_f, c_g, c_o) = blocks(cell)
    i = sigmoid(x @ W_i + h @ U_i + b_i + c_i)
    f = sigmoid(x @ W_f + h @ U_f + b_f + c_f)
    g = np.tanh(x @ W_g + h @ U_g + b_g + c_g)
    o = sigmoid(x @ W_o + h @ U_o + b_o + c_o)
    c = f * c + i * g
    return o * np.tanh(c), c


EQUATIONS = {"RNN": rnn_equations, "GRU": gru_equations, "GRU_reset_after": gru_equations, "LSTM": lstm_equations}


@pytest.mark.parametrize("name", CELLS)
def test_cell_computes_its_equations(name):
    cell = CELLS[name](4, 3).double()
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    state = tuple(torch.randn(5, 3, dtype=torch.float64) for _ in cell.state_names)
    expected = tuple(tensor.numpy() for tensor in state)
    for step in x:
        output, state = cell(step, state)
        expected = EQUATIONS[name](cell, step.numpy(), *expected)
        assert torch.equal(output, state[0])
        for ours, theirs in zip(state, expected, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_layer_computes_the_equations_step_by_step(name, build):
    layer_type = {"RNN": RNN, "GRU": GRU, "GRU_reset_after": partial(GRU, reset_after=True), "LSTM": LSTM}[name]
    layer = build(layer_type, 4, 3)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    outputs, _ = layer(x)
    state = tuple(np.zeros((2, 3)) for _ in layer.cells[0].state_names)
    for t in range(7):
        state = EQUATIONS[name](layer.cells[0], x[:, t].numpy(), *state)
        np.testing.assert_allclose(outputs[:, t].detach().numpy(), state[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    ("cell_type", "twin"),
    [(RNNCell, nn.RNNCell), (CELLS["GRU_reset_after"], nn.GRUCell), (LSTMCell, nn.LSTMCell)],
    ids=["RNN", "GRU_reset_after", "LSTM"],
)
def test_cell_matches_the_cell_of_torch_under_the_same_parameter_names(cell_type, twin, bias):
    cell, theirs = cell_type(4, 3, bias=bias).double(), twin(4, 3, bias=bias).double()
    cell.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    state = tuple(torch.randn(5, 3, dtype=torch.float64) for _ in cell.state_names)
    expected = theirs(x, state if len(state) == 2 else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    torch.testing.assert_close(cell(x, state)[1], expected, rtol=0, atol=1e-12)


@every_cell
def test_cell_starts_from_zeros_without_a_state(cell_type):
    cell = cell_type(4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    zeros = tuple(torch.zeros(5, 3, dtype=torch.float64) for _ in cell.state_names)
    torch.testing.assert_close(cell(x), cell(x, zeros), rtol=0, atol=0)
    torch.testing.assert_close(cell.initial_state(5), zeros, rtol=0, atol=0)


def set_bias(cell, gate, value):
    with torch.no_grad():
        cell.bias_ih.view(cell.num_gates, -1)[gate] = value


def gru_pair(input_size=4, hidden_size=3, bias=True):
    """The two forms of the GRU with the same weights."""
    before = GRUCell(input_size, hidden_size, bias=bias).double()
    after = GRUCell(input_size, hidden_size, bias=bias, reset_after=True).double()
    after.load_state_dict(before.state_dict())
    return before, after


def test_gru_forms_agree_while_the_reset_gate_is_open():
    before, after = gru_pair()
    for cell in (before, after):
        set_bias(cell, 0, 50.0)  # r = 1
    x, h = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(before(x, (h,)), after(x, (h,)), rtol=0, atol=1e-12)


def test_gru_forms_agree_for_a_single_unit_without_bias():
    before, after = gru_pair(hidden_size=1, bias=False)  # (r h) U = r (h U) for scalars
    x, h = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    torch.testing.assert_close(before(x, (h,))[0], after(x, (h,))[0], rtol=0, atol=1e-12)


def test_gru_forms_differ_in_general():
    before, after = gru_pair()
    x, h = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert (before(x, (h,))[0] - after(x, (h,))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("reset_after", [False, True], ids=["source", "reset_after"])
def test_gru_keeps_its_state_while_the_update_gate_is_one(reset_after):
    cell = GRUCell(4, 3, reset_after=reset_after).double()
    set_bias(cell, 1, 50.0)  # z = 1
    h = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(cell(torch.randn(5, 4, dtype=torch.float64), (h,))[0], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reset_after", [False, True], ids=["source", "reset_after"])
def test_gru_forgets_its_state_while_both_gates_are_zero(reset_after):
    cell = GRUCell(4, 3, reset_after=reset_after).double()
    set_bias(cell, 0, -80.0)  # r = 0
    set_bias(cell, 1, -80.0)  # z = 0
    x, h = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    (*_, W_n), _, (*_, b_n), (*_, c_n) = blocks(cell)
    expected = np.tanh(x.numpy() @ W_n + (b_n if reset_after else b_n + c_n))
    np.testing.assert_allclose(cell(x, (h,))[0].detach().numpy(), expected, rtol=0, atol=1e-12)


def test_lstm_keeps_its_memory_while_it_forgets_nothing_and_lets_nothing_in():
    cell = LSTMCell(4, 3).double()
    set_bias(cell, 0, -80.0)  # i = 0
    set_bias(cell, 1, 80.0)  # f = 1
    h, c = torch.randn(2, 5, 3, dtype=torch.float64)
    _, (_, after) = cell(torch.randn(5, 4, dtype=torch.float64), (h, c))
    torch.testing.assert_close(after, c, rtol=0, atol=1e-12)


@every_cell
def test_orthogonal_init_makes_each_gates_recurrent_matrix_orthogonal(cell_type):
    cell = cell_type(5, 7).double()
    cell.reset_parameters("orthogonal")
    for block in cell.weight_hh.split(7):
        torch.testing.assert_close(block @ block.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)


@every_cell
def test_orthogonal_init_draws_each_gates_input_matrix_from_xaviers_range(cell_type):
    cell = cell_type(20, 30)
    cell.reset_parameters("orthogonal")
    bound = math.sqrt(6 / (20 + 30))
    for block in cell.weight_ih.split(30):
        assert 0.9 * bound < block.abs().max() <= bound


@every_cell
def test_orthogonal_init_zeroes_biases_except_the_lstms_forget_gate(cell_type):
    cell = cell_type(5, 7)
    cell.reset_parameters("orthogonal")
    expected = torch.zeros(cell.num_gates, 7)
    if cell_type is LSTMCell:
        expected[1] = 1
    assert torch.equal((cell.bias_ih + cell.bias_hh).view(-1, 7), expected)


@every_cell
def test_orthogonal_init_works_without_bias(cell_type):
    cell = cell_type(5, 7, bias=False)
    cell.reset_parameters("orthogonal")
    assert [name for name, _ in cell.named_parameters()] == ["weight_ih", "weight_hh"]


@every_cell
def test_torch_init_fills_the_range_of_torch_nn(cell_type):
    cell = cell_type(20, 25)
    for parameter in cell.parameters():
        assert 0.9 / 5 < parameter.abs().max() <= 1 / 5


@every_cell
def test_reset_parameters_draws_new_weights_that_still_learn(cell_type):
    cell = cell_type(5, 7)
    before = cell.weight_hh.detach().clone()
    cell.reset_parameters("orthogonal")
    assert not torch.equal(before, cell.weight_hh)
    cell(torch.randn(2, 5))[0].sum().backward()
    assert all(parameter.is_leaf and parameter.grad is not None for parameter in cell.parameters())


def test_unknown_init_names_the_known_ones():
    with pytest.raises(ValueError, match="init must be 'torch' or 'orthogonal', got 'he'"):
        RNNCell(2, 3).reset_parameters("he")


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_what_a_cell_adds_to_the_weights_is_its_own_to_draw(init):
    class Scaled(RNNCell):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gain = torch.nn.Parameter(torch.ones(self.hidden_size))

    (cell,) = Recurrent(Scaled, 2, 3, init=init).cells
    assert cell.gain.tolist() == [1, 1, 1]


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0), (-1, 3)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match=f"must be at least 1, got {sizes[0]} and {sizes[1]}"):
        LSTMCell(*sizes)


def test_a_cell_without_a_step_says_so():
    class Empty(Cell):
        num_gates = 1

    with pytest.raises(NotImplementedError, match="Empty must define recur"):
        Empty(2, 3)(torch.zeros(1, 2))


def test_cell_shows_its_sizes_and_form():
    assert repr(GRUCell(2, 3, bias=False, reset_after=True)) == "GRUCell(2, 3, bias=False, reset_after=True)"
    assert repr(LSTMCell(2, 3)) == "LSTMCell(2, 3, bias=True)"
