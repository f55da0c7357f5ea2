"""Weights to and from `torch.nn`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from rnn_cells import GRU, LSTM, RNN, BiLSTM, Recurrent, RNNCell, from_torch, to_torch

TWINS = {"RNN": (RNN, nn.RNN), "GRU": (GRU, nn.GRU), "LSTM": (LSTM, nn.LSTM)}
every_twin = pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS)
every_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
every_direction = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])

SETTINGS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "training")


def settings(module):
    return {name: getattr(module, name) for name in SETTINGS}


def assert_bits_equal(a, b):
    """The same state dict: names, order, dtypes, bits."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@every_bias
@every_direction
@every_twin
def test_torch_weights_survive_the_round_trip_bit_for_bit(ours, theirs, bidirectional, bias):
    module = theirs(3, 5, num_layers=3, bidirectional=bidirectional, bias=bias, dropout=0.25)
    back = to_torch(from_torch(module))
    assert type(back) is theirs
    assert_bits_equal(back.state_dict(), module.state_dict())
    assert settings(back) == settings(module)


@every_bias
@every_direction
@every_twin
def test_our_weights_survive_the_round_trip_bit_for_bit(ours, theirs, bidirectional, bias):
    form = {"reset_after": True} if ours is GRU else {}
    layer = ours(3, 5, num_layers=3, bidirectional=bidirectional, bias=bias, dropout=0.25, **form)
    module = to_torch(layer)
    assert type(module) is theirs
    back = from_torch(module)
    assert type(back) is ours
    assert_bits_equal(back.state_dict(), layer.state_dict())
    assert settings(back) == settings(module) == settings(layer)


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch_first", "time_first"])
@every_direction
@every_twin
def test_converted_modules_compute_the_same(ours, theirs, bidirectional, batch_first):
    module = theirs(3, 5, num_layers=2, bidirectional=bidirectional, batch_first=batch_first).double()
    x = torch.randn(4, 4, 3, dtype=torch.float64)
    layer = from_torch(module)
    for copy in (layer, to_torch(layer)):
        torch.testing.assert_close(copy(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_twin
def test_dtype_and_mode_are_kept(ours, theirs, dtype, training):
    layer = from_torch(theirs(3, 5).to(dtype).train(training))
    module = to_torch(layer)
    for copy in (layer, module):
        assert copy.training is training
        assert {parameter.dtype for parameter in copy.parameters()} == {dtype}


@every_twin
def test_what_is_frozen_stays_frozen(ours, theirs):
    module = theirs(3, 5, num_layers=2, bidirectional=True)
    for index, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    layer = from_torch(module)
    back = to_torch(layer)
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    assert len(set(wanted)) == 2
    assert [parameter.requires_grad for parameter in layer.parameters()] == wanted
    assert [parameter.requires_grad for parameter in back.parameters()] == wanted


def test_weights_that_layers_share_stay_shared_and_each_keeps_its_type():
    module = nn.LSTM(5, 5, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    module.bias_ih_l1 = nn.Parameter(module.get_parameter("bias_ih_l1").detach().double())
    layer: Any = from_torch(module)
    assert layer.cells[0].weight_hh is layer.cells[1].weight_hh
    assert layer.cells[0].weight_hh is not module.weight_hh_l0
    assert [cell.bias_ih.dtype for cell in layer.cells] == [torch.float32, torch.float64]


def test_a_layer_without_memory_stays_without():
    layer: Any = from_torch(nn.LSTM(3, 5).to("meta"))
    assert {parameter.device.type for parameter in (*layer.parameters(), *to_torch(layer).parameters())} == {"meta"}


def computed_weights():
    """A module and a layer for each way in which a weight is computed from others."""
    prunes, normalised, divided = (nn.LSTM(3, 5), LSTM(3, 5)), (nn.LSTM(3, 5), LSTM(3, 5)), (nn.LSTM(3, 5), LSTM(3, 5))
    for module, name in ((prunes[0], "weight_hh_l0"), (prunes[1].cells[0], "weight_hh")):
        prune.l1_unstructured(module, name, 0.5)
    for module, name in ((normalised[0], "weight_hh_l0"), (normalised[1].cells[0], "weight_hh")):
        nn.utils.parametrizations.weight_norm(module, name)
    for module, name in ((divided[0], "weight_hh_l0"), (divided[1].cells[0], "weight_hh")):
        nn.utils.spectral_norm(module, name)
    return {"pruned": prunes, "parametrized": normalised, "spectral_norm": divided}


@pytest.mark.parametrize("kind", ["pruned", "parametrized", "spectral_norm"])
def test_weights_that_are_computed_are_refused_not_forgotten(kind):
    module, layer = computed_weights()[kind]
    with pytest.raises(ValueError, match=r"weight_hh_l0 of this .*LSTM is no parameter but computed.*prune\.remove"):
        from_torch(module)
    with pytest.raises(ValueError, match=r"weight_hh of this .*LSTMCell is no parameter but computed"):
        to_torch(layer)
    with pytest.raises(ValueError, match=r"weight_hh of this .*LSTMCell is computed from others"):
        layer.reset_parameters()


class Doubled(nn.LSTM):
    """Computes something else than its weights say."""

    def forward(self, *arguments):
        output, state = super().forward(*arguments)
        return 2 * output, state


def test_a_module_with_a_forward_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Doubled has a forward of its own, which has no counterpart"):
        from_torch(Doubled(3, 5))


@every_twin
def test_converted_weights_are_copies_that_learn(ours, theirs):
    module = theirs(3, 5)
    layer = from_torch(module)
    back = to_torch(layer)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    layer(torch.randn(2, 4, 3))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert_bits_equal(module.state_dict(), before)
    assert_bits_equal(back.state_dict(), before)


def test_bilstm_becomes_a_bidirectional_lstm_of_torch():
    layer = BiLSTM(3, 5, num_layers=2)
    module = to_torch(layer)
    assert type(module) is nn.LSTM
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-6)


def test_gru_of_torch_becomes_the_form_with_reset_after():
    layer = from_torch(nn.GRU(3, 5))
    assert isinstance(layer, GRU)
    assert layer.reset_after
    assert all(cell.reset_after for cell in layer.cells)


def test_converted_layer_takes_the_backend_it_is_given():
    assert from_torch(nn.LSTM(3, 5)).backend == "auto"
    assert from_torch(nn.LSTM(3, 5), backend="reference").backend == "reference"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.RNN(3, 5, nonlinearity="relu"), "nonlinearity='tanh'"),
        (nn.LSTM(3, 5, proj_size=2), "proj_size has no counterpart"),
        (nn.Linear(3, 5), "from_torch takes torch.nn.RNN, GRU or LSTM, got Linear"),
        (nn.LSTMCell(3, 5), "from_torch takes torch.nn.RNN, GRU or LSTM, got LSTMCell"),
    ],
    ids=["relu", "proj_size", "Linear", "LSTMCell"],
)
def test_modules_without_a_counterpart_here_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        from_torch(module)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (GRU(3, 5), "torch.nn.GRU is the form with reset_after=True"),
        (LSTM(3, 5, recurrent_dropout=0.1), "torch.nn has no recurrent_dropout; set the layer's to 0"),
        (Recurrent(RNNCell, 3, 5), "torch.nn has no counterpart of Recurrent"),
        (nn.Linear(3, 5), "torch.nn has no counterpart of Linear"),
    ],
    ids=["source_gru", "recurrent_dropout", "own_cell", "Linear"],
)
def test_layers_without_a_counterpart_in_torch_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        to_torch(layer)


class OwnProject(LSTM):
    def forward(self, *args, **options):
        return super().forward(*args, **options)


def hooked(module: Any) -> Any:
    module.register_forward_hook(lambda *_: None)
    return module


def test_hooks_and_methods_of_ones_own_are_refused_not_forgotten():
    layer = LSTM(2, 3)
    hooked(layer.cells[0])
    replaced: Any = LSTM(2, 3)
    replaced.cells[0].project = lambda x: x
    for each in (layer, hooked(LSTM(2, 3)), OwnProject(2, 3), replaced):
        with pytest.raises(ValueError, match="which have no counterpart"):
            to_torch(each)
    patched: Any = nn.LSTM(2, 3)
    patched.forward = lambda x: x
    for module in (hooked(nn.LSTM(2, 3)), patched):
        with pytest.raises(ValueError, match="no counterpart"):
            from_torch(module)
