from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_cells import GRU, LSTM, RNN, BiLSTM, Cell, GRUCell, Recurrent, RNNCell

BATCH, STEPS, INPUT, HIDDEN = 3, 4, 2, 5


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
def test_layer_equals_a_loop_over_its_cells(build, layer_type, bidirectional):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    outputs, finals = layer(x)
    sequence, expected_finals, cells = list(x.unbind(1)), [], iter(layer.cells)
    for _ in range(2):
        directions = []
        for order in (range(STEPS), reversed(range(STEPS)))[: layer.directions]:
            cell, state, steps = next(cells), None, list(sequence)
            for t in order:
                steps[t], state = cell(sequence[t], state)
            directions.append(steps)
            expected_finals.append(state)
        sequence = [torch.cat(steps, dim=-1) for steps in zip(*directions, strict=True)]
    torch.testing.assert_close(outputs, torch.stack(sequence, dim=1), rtol=0, atol=1e-12)
    expected = tuple(torch.stack(tensors) for tensors in zip(*expected_finals, strict=True))
    torch.testing.assert_close(finals if isinstance(finals, tuple) else (finals,), expected, rtol=0, atol=1e-12)


def test_continuing_from_the_final_state_equals_one_long_run(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2)
    x = torch.randn(BATCH, 7, INPUT, dtype=torch.float64)
    whole, final = layer(x)
    first, state = layer(x[:, :3])
    second, state = layer(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


def test_time_first_layer_equals_batch_first_layer_transposed(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, bidirectional=True)
    transposed = copy.deepcopy(layer)
    transposed.batch_first = False
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    outputs, state = layer(x, lengths=[2, 4, 1])
    outputs_t, state_t = transposed(x.transpose(0, 1), lengths=[2, 4, 1])
    assert outputs_t.shape == (STEPS, BATCH, 2 * HIDDEN)
    torch.testing.assert_close(outputs_t.transpose(0, 1), outputs, rtol=0, atol=0)
    torch.testing.assert_close(state_t, state, rtol=0, atol=0)


@pytest.mark.parametrize("layer_type", [RNN, GRU])
def test_state_is_a_bare_tensor_for_cells_with_one(layer_type):
    outputs, state = layer_type(INPUT, HIDDEN, num_layers=3, bidirectional=True)(torch.randn(BATCH, STEPS, INPUT))
    assert outputs.shape == (BATCH, STEPS, 2 * HIDDEN)
    assert isinstance(state, torch.Tensor)
    assert state.shape == (6, BATCH, HIDDEN)


def test_state_is_a_pair_for_the_lstm():
    layer = LSTM(INPUT, HIDDEN, num_layers=3, bidirectional=True)
    _, state = layer(torch.randn(BATCH, STEPS, INPUT))
    assert isinstance(state, tuple)
    assert [tuple(tensor.shape) for tensor in state] == [(6, BATCH, HIDDEN)] * 2


@pytest.mark.parametrize("layer_type", [RNN, GRU])
def test_state_of_one_tensor_may_come_in_a_tuple(layer_type):
    layer = layer_type(INPUT, HIDDEN)
    x, state = torch.randn(BATCH, STEPS, INPUT), torch.randn(1, BATCH, HIDDEN)
    torch.testing.assert_close(layer(x, (state,)), layer(x, state), rtol=0, atol=0)


def test_final_states_are_the_outputs_at_the_ends(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    outputs, state = layer(torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64), lengths=[STEPS, 2, 1])
    h = state[0] if isinstance(state, tuple) else state
    for b, last in enumerate([STEPS - 1, 1, 0]):
        assert torch.equal(h[2, b], outputs[b, last, :HIDDEN])
        assert torch.equal(h[3, b], outputs[b, 0, HIDDEN:])


def test_results_are_the_same_without_autograd(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    expected = layer(x, lengths=[2, 4, 1])
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, lengths=[2, 4, 1]), expected, rtol=0, atol=1e-12)


def test_results_have_the_weights_dtype(build, layer_type):
    for dtype in (torch.float32, torch.float64):
        outputs, state = build(layer_type, INPUT, HIDDEN, dtype=dtype)(
            torch.randn(BATCH, STEPS, INPUT, dtype=dtype), lengths=[1, 2, 3]
        )
        assert {outputs.dtype, *(tensor.dtype for tensor in state)} == {dtype}


class Echo(Cell):
    """The output is the input, whatever the state."""

    num_gates = 1

    def project(self, x):
        return x

    def recur(self, gates, state):
        return (gates,)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_dropout_acts_once_between_two_layers_and_not_after_the_last(num_layers):
    layer = Recurrent(Echo, 50, 50, num_layers=num_layers, dropout=0.5)
    outputs, _ = layer(torch.ones(4, 6, 50))
    survivors = 2.0 ** (num_layers - 1)
    assert set(outputs.unique().tolist()) == ({1.0} if num_layers == 1 else {0.0, survivors})
    assert outputs.mean().item() == pytest.approx(1, abs=0.2)


def test_with_certain_dropout_the_second_layer_sees_zeros(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, dropout=1.0)
    outputs, _ = layer(torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64))
    state = None
    for t in range(STEPS):
        expected, state = layer.cells[1](torch.zeros(BATCH, HIDDEN, dtype=torch.float64), state)
        torch.testing.assert_close(outputs[:, t], expected, rtol=0, atol=1e-12)
    assert torch.all(outputs != 0)


def test_dropout_is_off_in_evaluation(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=3, dropout=0.9).eval()
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    dropped = layer(x)
    layer.train().dropout = 0.0
    torch.testing.assert_close(dropped, layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
def test_recurrent_dropout_zeroes_the_same_recurrent_weights_at_every_step(build, layer_type, bidirectional):
    layer = build(layer_type, INPUT, HIDDEN, num_layers=2, bidirectional=bidirectional, recurrent_dropout=0.4)
    twin = copy.deepcopy(layer).eval()
    weights = layer.state_dict()
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    torch.manual_seed(7)
    dropped = layer(x, lengths=[2, 4, 1])
    dropped[0].square().sum().backward()
    torch.manual_seed(7)
    scales = [torch.nn.functional.dropout(torch.ones_like(cell.weight_hh), 0.4) for cell in twin.cells]
    assert {value for scale in scales for value in scale.unique().tolist()} == {0, 1 / 0.6}
    for cell, scale in zip(twin.cells, scales, strict=True):
        cell.weight_hh.data *= scale
    expected = twin(x, lengths=[2, 4, 1])
    expected[0].square().sum().backward()
    torch.testing.assert_close(dropped, expected, rtol=0, atol=1e-12)
    for cell, other, scale in zip(layer.cells, twin.cells, scales, strict=True):
        other.weight_hh.grad *= scale
        for (name, parameter), theirs in zip(cell.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)
    torch.testing.assert_close(layer.state_dict(), weights, rtol=0, atol=0)


def test_recurrent_dropout_is_drawn_anew_for_each_call_and_off_in_evaluation(build, layer_type):
    layer = build(layer_type, INPUT, HIDDEN, recurrent_dropout=0.5)
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    torch.testing.assert_close(layer.eval()(x), layer(x), rtol=0, atol=0)
    without = copy.deepcopy(layer).train()
    without.recurrent_dropout = 0.0
    torch.testing.assert_close(layer(x), without(x), rtol=0, atol=0)


def test_recurrent_dropout_of_weights_that_are_computed_is_refused():
    layer = GRU(INPUT, HIDDEN, recurrent_dropout=0.5)
    torch.nn.utils.parametrizations.weight_norm(layer.cells[0], "weight_hh")
    with pytest.raises(ValueError, match="recurrent_dropout: weight_hh of this ParametrizedGRUCell is no parameter"):
        layer(torch.zeros(BATCH, STEPS, INPUT))


def test_recurrent_dropout_under_autocast_leaves_the_state_in_single_precision():
    layer = LSTM(INPUT, HIDDEN, recurrent_dropout=0.5, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, c) = layer(torch.randn(2, 3, INPUT))
    assert c.dtype == torch.float32


def test_recurrent_dropout_under_autocast_casts_the_weights_once(layer_type):
    layer = layer_type(INPUT, HIDDEN, recurrent_dropout=0.5, backend="reference")
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output, _ = layer(torch.randn(BATCH, 50, INPUT))
    output.float().sum().backward()
    weight = layer.cells[0].weight_hh
    assert weight.grad is not None
    of_weights = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() == weight.numel()}
    assert len(of_weights) <= 3  # the mask and the weights, of a GRU of its candidate, too; not those of every step


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch 2.10 compiles it in several graphs, with a warning")
def test_recurrent_dropout_can_be_compiled(layer_type):
    layer = layer_type(INPUT, HIDDEN, recurrent_dropout=0.5, backend="reference")
    x = torch.randn(BATCH, 2, INPUT)
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)


def test_init_reaches_every_cell(layer_type):
    layer = layer_type(INPUT, HIDDEN, num_layers=2, bidirectional=True, init="orthogonal")
    for cell in layer.cells:
        for block in cell.weight_hh.split(HIDDEN):
            torch.testing.assert_close(block @ block.T, torch.eye(HIDDEN), rtol=0, atol=1e-5)
    layer.reset_parameters("torch")
    assert all(parameter.abs().max() <= HIDDEN**-0.5 for parameter in layer.parameters())


def test_cells_have_weights_of_their_own(layer_type):
    weights = [cell.weight_hh for cell in layer_type(INPUT, HIDDEN, num_layers=2, bidirectional=True).cells]
    assert len(weights) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_bilstm_is_an_lstm_in_both_directions():
    layer, twin = BiLSTM(INPUT, HIDDEN, num_layers=2), LSTM(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(BATCH, STEPS, INPUT)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=0)
    assert layer.output_size == 2 * HIDDEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must lie between 0 and 1, got 1.5"),
        ({"dropout": -0.1}, "dropout must lie between 0 and 1, got -0.1"),
        ({"dropout": float("nan")}, "dropout must lie between 0 and 1, got nan"),
        ({"recurrent_dropout": 1.1}, "recurrent_dropout must lie between 0 and 1, got 1.1"),
        ({"input_size": 0}, "input_size and hidden_size must be at least 1, got 0 and 5"),
        ({"hidden_size": 0}, "input_size and hidden_size must be at least 1, got 2 and 0"),
        ({"init": "he"}, "init must be 'torch' or 'orthogonal', got 'he'"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(layer_type, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_type(**{"input_size": INPUT, "hidden_size": HIDDEN} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": "relu"}, "bias must be True or False, got 'relu'"),
        ({"bias": 0.5}, "bias must be True or False, got 0.5"),
        ({"batch_first": 1}, "batch_first must be True or False, got 1"),
        ({"bidirectional": 0.5}, "bidirectional must be True or False, got 0.5"),
        ({"dropout": True}, "dropout must be a number, got True"),
        ({"dropout": "0.5"}, "dropout must be a number, got '0.5'"),
        ({"recurrent_dropout": False}, "recurrent_dropout must be a number, got False"),
        ({"num_layers": True}, "num_layers must be an integer, got True"),
        ({"num_layers": 2.0}, "num_layers must be an integer, got 2.0"),
        ({"input_size": 2.5}, "input_size must be an integer, got 2.5"),
        ({"hidden_size": "5"}, "hidden_size must be an integer, got '5'"),
        ({"init": None}, "init must be a string, got None"),
        ({"backend": torch.device("cpu")}, "backend must be a string, got device"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_arguments_of_another_type_are_refused(layer_type, arguments, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        layer_type(**{"input_size": INPUT, "hidden_size": HIDDEN} | arguments)


@pytest.mark.parametrize("ours", [RNN, GRU, LSTM])
def test_arguments_stand_where_torch_has_them(ours):
    theirs = getattr(nn, ours.__name__)
    nonlinearity = ("tanh",) if ours is RNN else ()
    arguments = (INPUT, HIDDEN, 2, *nonlinearity, False, False, 0.25, True)
    layer, module = ours(*arguments), theirs(*arguments)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(layer, name) == getattr(module, name), name
    with pytest.raises(TypeError):
        ours(*arguments, 1)  # device, or proj_size


def test_another_nonlinearity_is_refused_where_torch_has_it():
    rnn, cell = cast("Any", RNN), cast("Any", GRUCell)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh', which RNNCell computes, got 'relu'"):
        RNN(INPUT, HIDDEN, 2, "relu", True, True)
    with pytest.raises(TypeError, match="nonlinearity must be a string, got True"):
        rnn(INPUT, HIDDEN, 2, True)
    with pytest.raises(TypeError, match="reset_after must be True or False, got 'cuda'"):
        cell(INPUT, HIDDEN, True, "cuda")


@pytest.mark.parametrize(
    "shape", [(BATCH, STEPS), (STEPS,), (1, BATCH, STEPS, INPUT), (BATCH, STEPS, INPUT + 1), (BATCH, 0, INPUT)], ids=str
)
def test_inputs_of_another_shape_are_refused(layer_type, shape):
    expected = f"input must be (batch, time, input_size) with at least one step and input_size=2, got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        layer_type(INPUT, HIDDEN)(torch.zeros(shape))


def test_a_packed_sequence_is_refused_with_what_to_give_instead():
    packed = pack_padded_sequence(torch.zeros(2, 3, 4), torch.tensor([3, 1]), batch_first=True)
    with pytest.raises(TypeError, match="give the padded batch and lengths="):
        GRU(4, 5)(packed)


def test_dropout_that_has_nothing_to_act_between_is_warned_about(caplog):
    GRU(4, 5, num_layers=2, dropout=0.3)
    assert not caplog.records
    GRU(4, 5, dropout=0.31)
    GRU(4, 5, dropout=0.31)
    assert len(caplog.records) == 1
    assert "dropout=0.31 acts between layers, and there is only one" in caplog.text


def test_refused_time_first_inputs_are_described_time_first():
    with pytest.raises(ValueError, match=r"\(time, batch, input_size\) .* got \(0, 3, 2\)"):
        GRU(INPUT, HIDDEN, batch_first=False)(torch.zeros(0, BATCH, INPUT))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 2], r"lengths must be 3 integers, got torch.int64 of \(2,\)"),
        ([[1, 2, 3]], r"lengths must be 3 integers, got torch.int64 of \(1, 3\)"),
        (2, r"lengths must be 3 integers, got torch.int64 of \(\)"),
        ([1.0, 2.0, 3.0], r"lengths must be 3 integers, got torch.float32 of \(3,\)"),
        ([1, 2, STEPS + 1], r"lengths must lie between 0 and 4, got \[1, 2, 5\]"),
        ([1, -1, 2], r"lengths must lie between 0 and 4, got \[1, -1, 2\]"),
    ],
    ids=["too_few", "matrix", "scalar", "floats", "too_long", "negative"],
)
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch_first", "time_first"])
def test_lengths_that_do_not_fit_are_refused(layer_type, lengths, message, batch_first):
    x = torch.zeros(BATCH, STEPS, INPUT) if batch_first else torch.zeros(STEPS, BATCH, INPUT)
    with pytest.raises(ValueError, match=message):
        layer_type(INPUT, HIDDEN, batch_first=batch_first)(x, lengths=lengths)


@pytest.mark.parametrize(
    "shape",
    [(1, BATCH, HIDDEN), (2, BATCH + 1, HIDDEN), (2, BATCH, HIDDEN + 1), (BATCH, 2, HIDDEN), (BATCH, HIDDEN)],
    ids=str,
)
@pytest.mark.parametrize("layer_type", [RNN, GRU])
def test_states_of_another_shape_are_refused(layer_type, shape):
    expected = f"state must hold h of shape (2, 3, 5) each, got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        layer_type(INPUT, HIDDEN, bidirectional=True)(torch.zeros(BATCH, STEPS, INPUT), torch.zeros(shape))


@pytest.mark.parametrize("tensors", [1, 3])
def test_lstm_insists_on_h_and_c(tensors):
    state = tuple(torch.zeros(1, BATCH, HIDDEN) for _ in range(tensors))
    with pytest.raises(ValueError, match=r"state must hold h and c of shape \(1, 3, 5\) each, got \(1, 3, 5\)"):
        LSTM(INPUT, HIDDEN)(torch.zeros(BATCH, STEPS, INPUT), state if tensors > 1 else state[0])


def test_gru_refuses_an_lstms_state():
    with pytest.raises(ValueError, match="state must hold h of shape"):
        GRU(INPUT, HIDDEN)(
            torch.zeros(BATCH, STEPS, INPUT), (torch.zeros(1, BATCH, HIDDEN), torch.zeros(1, BATCH, HIDDEN))
        )


def test_layer_shows_its_settings():
    arguments = {"num_layers": 2, "dropout": 0.1, "bidirectional": True, "recurrent_dropout": 0.2}
    layer = Recurrent(RNNCell, INPUT, HIDDEN, **arguments, backend="reference")
    settings = "2, 5, num_layers=2, dropout=0.1, bidirectional=True, recurrent_dropout=0.2, backend='reference'"
    assert layer.extra_repr() == settings
    assert settings in repr(layer)


def test_importing_the_package_loads_nothing_beyond_torch_and_the_standard_library():
    program = """
import sys, torch
before = set(sys.modules)
import rnn_cells
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {"rnn_cells", "torch"}
    assert "rnn_cells" in result.stdout
