"""Every layer against its counterpart in `torch.nn`: outputs, final states and every gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_cells import GRU, LSTM, RNN, BiLSTM

TWINS = {"RNN": (RNN, nn.RNN), "GRU": (partial(GRU, reset_after=True), nn.GRU), "LSTM": (LSTM, nn.LSTM)}
every_twin = pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)

BATCH, STEPS, INPUT, HIDDEN = 4, 6, 3, 5
RAGGED = (3, 6, 1, 4)


def twin_layers(build, twins, *args, dtype=torch.float64, batch_first=True, **kwargs):
    """Our layer and torch's with the same weights; parameters come in the same order on both sides."""
    ours = build(twins[0], *args, dtype=dtype, batch_first=batch_first, **kwargs)
    theirs = twins[1](*args, batch_first=batch_first, **kwargs).to(dtype)
    with torch.no_grad():
        for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(twin)
    return ours, theirs


def run_packed(module, x, state, lengths):
    """torch.nn's way with ragged batches."""
    if lengths is None:
        return module(x, state)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=module.batch_first, enforce_sorted=False)
    outputs, state = module(packed, state)
    steps = x.shape[1 if module.batch_first else 0]
    return pad_packed_sequence(outputs, batch_first=module.batch_first, total_length=steps)[0], state


def everything(run, module, x, state, lengths):
    """Outputs, final states and the gradient of a random function of both for each input and parameter, by name."""
    x = x.clone().requires_grad_()
    state = tuple(tensor.clone().requires_grad_() for tensor in state)
    outputs, finals = run(module, x, state if len(state) == 2 else state[0], lengths)
    results = {"outputs": outputs} | dict(zip("hc", finals if isinstance(finals, tuple) else (finals,), strict=False))
    dice = torch.Generator().manual_seed(1)
    loss = torch.stack([(r * torch.randn(r.shape, generator=dice, dtype=r.dtype)).sum() for r in results.values()])
    names = ["x", *(f"{name}0" for name in "hc"[: len(state)])]
    names += [f"parameter {index}" for index, _ in enumerate(module.parameters())]
    gradients = torch.autograd.grad(loss.sum(), [x, *state, *module.parameters()])
    return results | {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}


def assert_same(ours, theirs, atol):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=atol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def random_batch(theirs, dtype=torch.float64, sizes=(BATCH, STEPS)):
    batch, steps = sizes
    shape = (batch, steps) if theirs.batch_first else (steps, batch)
    cells = theirs.num_layers * (2 if theirs.bidirectional else 1)
    x = torch.randn(*shape, theirs.input_size, dtype=dtype)
    state = tuple(
        torch.randn(cells, batch, theirs.hidden_size, dtype=dtype) for _ in range(1 + isinstance(theirs, nn.LSTM))
    )
    return x, state


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch_first", "time_first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["dense", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2, 3], ids=["L1", "L2", "L3"])
@every_twin
def test_layer_matches_torch(build, twins, num_layers, bidirectional, lengths, bias, batch_first):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    ours, theirs = twin_layers(build, twins, INPUT, HIDDEN, **options)
    x, state = random_batch(theirs)
    expected = everything(run_packed, theirs, x, state, lengths)
    assert_same(everything(type(ours).__call__, ours, x, state, lengths), expected, 1e-10)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["dense", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@every_twin
def test_layer_matches_torch_in_float32(build, twins, bidirectional, lengths):
    ours, theirs = twin_layers(
        build, twins, INPUT, HIDDEN, num_layers=2, bidirectional=bidirectional, dtype=torch.float32
    )
    x, state = random_batch(theirs, torch.float32)
    expected = everything(run_packed, theirs, x, state, lengths)
    assert_same(everything(type(ours).__call__, ours, x, state, lengths), expected, 1e-5)


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1), (1, 5, 3, 7), (3, 1, 2, 13), (17, 9, 1, 33), (5, 63, 19, 16), (33, 4, 65, 65)],
    ids=lambda s: "B{}-T{}-I{}-H{}".format(*s),
)
@every_twin
def test_layer_matches_torch_at_odd_sizes(build, twins, sizes):
    batch, steps, input_size, hidden_size = sizes
    ours, theirs = twin_layers(build, twins, input_size, hidden_size, bidirectional=True)
    x, state = random_batch(theirs, sizes=(batch, steps))
    lengths = torch.randint(1, steps + 1, (batch,)).tolist()
    expected = everything(run_packed, theirs, x, state, lengths)
    assert_same(everything(type(ours).__call__, ours, x, state, lengths), expected, 1e-10)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["dense", "ragged"])
@every_twin
def test_layer_matches_torch_without_initial_state(build, twins, lengths):
    ours, theirs = twin_layers(build, twins, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, _ = random_batch(theirs)
    outputs, state = ours(x, lengths=lengths)
    expected, expected_state = run_packed(theirs, x, None, lengths)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["dense", "ragged"])
@every_twin
def test_layer_matches_torch_on_non_contiguous_tensors(build, twins, lengths):
    ours, theirs = twin_layers(build, twins, INPUT, HIDDEN)
    x, state = random_batch(theirs)
    expected = everything(run_packed, theirs, x, state, lengths)
    strided = torch.randn(STEPS, INPUT, 2 * BATCH, dtype=torch.float64)[..., ::2].permute(2, 0, 1)
    strided.copy_(x)
    state = tuple(torch.empty(HIDDEN, BATCH, 1, dtype=torch.float64).permute(2, 1, 0).copy_(tensor) for tensor in state)
    assert not strided.is_contiguous()
    assert not state[0].is_contiguous()

    def run(module, x, state, lengths):  # `everything` clones; the strides survive it
        assert not x.is_contiguous()
        return module(x, state, lengths)

    assert_same(everything(run, ours, strided, state, lengths), expected, 1e-10)


def test_bilstm_matches_torchs_bidirectional_lstm(build):
    ours, theirs = twin_layers(build, (BiLSTM, partial(nn.LSTM, bidirectional=True)), INPUT, HIDDEN, num_layers=2)
    x, state = random_batch(theirs)
    expected = everything(run_packed, theirs, x, state, RAGGED)
    assert_same(everything(type(ours).__call__, ours, x, state, RAGGED), expected, 1e-10)


@pytest.mark.parametrize("part", ["outputs", "state"])
@every_twin
def test_gradients_match_torch_when_only_one_result_is_used(build, twins, part):
    ours, theirs = twin_layers(build, twins, INPUT, HIDDEN, bidirectional=True)
    x, _ = random_batch(theirs)

    def gradients(module, run):
        outputs, state = run(module, x, None, RAGGED)
        used = outputs if part == "outputs" else state[-1] if isinstance(state, tuple) else state
        return torch.autograd.grad(used.square().sum(), list(module.parameters()))

    expected = gradients(theirs, run_packed)
    torch.testing.assert_close(gradients(ours, type(ours).__call__), expected, rtol=0, atol=1e-10)
