"""The triton backend against the reference in float64: on a GPU if there is one, otherwise in Triton's interpreter
(see `tests/conftest.py`), past `why_not`, which allows nothing but a GPU.

The interpreter shows that the arithmetic is right; races, layouts and precision only show on a GPU.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from rnn_cells import LSTM, GRUCell, LSTMCell, RNNCell, to_torch
from rnn_cells.backends import reference, scan_layer, triton

pytest.importorskip("triton")

CELLS = {"RNN": RNNCell, "GRU": GRUCell, "GRU_reset_after": partial(GRUCell, reset_after=True), "LSTM": LSTMCell}
every_cell = pytest.mark.parametrize("cell_type", CELLS.values(), ids=CELLS)
SMALL = (3, 2, 2, 5)
BATCH, STEPS, INPUT, HIDDEN = 18, 4, 3, 33  # two programs, of which the second one has two sequences
LENGTHS = [4, 0, 1, 3, 2, 4, 4, 1, 0, 2, 3, 3, 1, 4, 2, 2, 1, 3]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def shared(monkeypatch):
    """Programs share the hidden units of a sequence, although one could hold them all."""
    monkeypatch.setattr(triton, "WHOLE_BYTES", 0)
    triton._plan.cache_clear()
    yield
    triton._plan.cache_clear()


@pytest.fixture
def streamed(shared, monkeypatch):
    """They read the weights anew in each step."""
    monkeypatch.setattr(triton, "LETTER_BYTES", 0)


def problem(cell_type, directions=1, sizes=(BATCH, STEPS, INPUT, HIDDEN), bias=True):
    """Cells, inputs and the initial state, tensors (D, B, H)."""
    batch, steps, inputs, hidden = sizes
    cells = [cell_type(inputs, hidden, bias=bias).to(DEVICE) for _ in range(directions)]
    x = torch.randn(steps, batch, inputs, device=DEVICE)
    state = tuple(torch.randn(directions, batch, hidden, device=DEVICE) for _ in cells[0].state_names)
    return cells, x, state


def single(*arguments, **options):
    """One cell of `problem`, with a state (B, H)."""
    (cell,), x, state = problem(*arguments, **options)
    return cell, x, tuple(tensor[0] for tensor in state)


def results(backend, cells, x, state, lengths, reverse, dtype, used):
    """Outputs, final states, and the gradients of a random function of the `used` ones of them."""
    x = x.detach().to(dtype).requires_grad_()
    state = None if state is None else tuple(tensor.to(dtype).requires_grad_() for tensor in state)
    if reverse:
        output, final = backend.scan(cells[0], x, tuple(tensor[0] for tensor in state or ()), lengths, True)
    else:
        output, final = scan_layer(backend, cells, x, state, lengths)
    found = [output, *final]
    dice = torch.Generator().manual_seed(1)
    weights = [torch.randn(tensor.shape, generator=dice).to(tensor) for tensor in found]
    pairs = list(zip(found, weights, strict=True))[used]
    loss = torch.stack([(tensor.double() * weight).sum() for tensor, weight in pairs]).sum()
    leaves = [x, *(state or ()), *(parameter for cell in cells for parameter in cell.parameters())]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [*found, *gradients]


def expected(cells, x, state, lengths, reverse=False, used=slice(None)):
    """What the reference gives in float64."""
    for cell in cells:
        cell.double()
    found = results(reference, cells, x, state, lengths, reverse, torch.float64, used)
    for cell in cells:
        cell.float()
    return found


def ours(cells, x, state, lengths, reverse=False, used=slice(None)):
    return results(triton, cells, x, state, lengths, reverse, torch.float32, used)


def assert_close(found, wanted, tolerance=1e-5):
    """Errors in proportion to the norm of each result."""
    for index, (tensor, exact) in enumerate(zip(found, wanted, strict=True)):
        error = (tensor.double() - exact).norm() / exact.norm().clamp(min=1e-3)
        assert error < tolerance, f"result {index} of {tuple(exact.shape)}: {error:.1e}"


slow_here = [] if torch.cuda.is_available() else [pytest.mark.exhaustive]  # the interpreter takes seconds for each


def interpreted_slowly(test):
    return test if torch.cuda.is_available() else pytest.mark.exhaustive(test)


@pytest.mark.parametrize(
    ("way", "lengths"),
    [
        *(("forwards", None), ("reverse", LENGTHS), ("both", LENGTHS)),
        *(pytest.param(*each, marks=slow_here) for each in (("forwards", LENGTHS), ("reverse", None), ("both", None))),
    ],
    ids=lambda each: each if isinstance(each, str) else "dense" if each is None else "ragged",
)
@every_cell
def test_outputs_states_and_gradients_match_the_reference(cell_type, way, lengths):
    cells, x, state = problem(cell_type, directions=2 if way == "both" else 1)
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    reverse = way == "reverse"
    assert_close(ours(cells, x, state, lengths, reverse), expected(cells, x, state, lengths, reverse))


# The interpreter runs one program after the other, and this GRU's wait for each other within a step.
splittable = [name for name in CELLS if name != "GRU" or torch.cuda.is_available()]


@pytest.mark.parametrize("sharing", ["shared", pytest.param("streamed", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("way", [pytest.param("reverse", marks=pytest.mark.exhaustive), "both"])
@pytest.mark.parametrize("name", splittable)
def test_programs_that_share_the_hidden_units_match_the_reference(request, name, way, sharing):
    request.getfixturevalue(sharing)
    cells, x, state = problem(CELLS[name], directions=2 if way == "both" else 1, sizes=(BATCH, 2, INPUT, 70))
    plan = triton._plan(
        triton._Problem(triton.kind_of(cells[0]), 1, 0, torch.float32, (torch.float32,), "tf32x3"), 70, BATCH, x.device
    )
    assert plan.split > 1
    assert plan.stream == (sharing == "streamed")
    lengths = torch.tensor(LENGTHS, device=DEVICE).clamp(max=2)
    reverse = way == "reverse"
    assert_close(ours(cells, x, state, lengths, reverse), expected(cells, x, state, lengths, reverse))


@interpreted_slowly
@every_cell
def test_nothing_of_the_padding_is_read(cell_type):
    cells, x, state = problem(cell_type, directions=2)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    clean = ours(cells, x, state, lengths)
    padding = torch.arange(STEPS, device=DEVICE)[:, None] >= lengths
    poisoned = ours(cells, torch.where(padding[..., None], float("nan"), x), state, lengths)
    assert all(torch.equal(mine, other) for mine, other in zip(poisoned, clean, strict=True))
    assert torch.all(clean[0][padding] == 0)


@interpreted_slowly
@every_cell
def test_the_initial_state_is_zero_if_none_is_given(cell_type):
    cells, x, state = problem(cell_type, directions=2)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    zeros = tuple(torch.zeros_like(tensor) for tensor in state)
    found, wanted = ours(cells, x, None, lengths), ours(cells, x, zeros, lengths)
    del wanted[2 + len(zeros) : 2 + 2 * len(zeros)]  # the gradients of the zeros
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("used", [slice(0, 1), slice(1, 2), slice(-1, None)], ids=["outputs", "first", "last"])
@interpreted_slowly
@every_cell
def test_gradients_match_when_only_one_result_is_used(cell_type, used):
    cells, x, state = problem(cell_type, directions=2)
    assert_close(ours(cells, x, state, None, used=used), expected(cells, x, state, None, used=used))


@interpreted_slowly
def test_the_gradient_of_the_outputs_may_lie_in_memory_in_any_way():
    cells, x, _ = problem(LSTMCell, directions=2)
    leaves = [x.requires_grad_(), *(parameter for cell in cells for parameter in cell.parameters())]
    one = torch.randn(1, 1, 1, device=DEVICE)
    batch_first = torch.randn(BATCH, STEPS, 2 * HIDDEN, device=DEVICE).transpose(0, 1)
    features_first = torch.randn(2 * HIDDEN, STEPS, BATCH, device=DEVICE).permute(1, 2, 0)
    for gradient in (one.expand(STEPS, BATCH, 2 * HIDDEN), batch_first, features_first):
        output, _ = triton.scan_layer(cells, x)
        found, wanted = (
            torch.autograd.grad(output, leaves, given, retain_graph=True) for given in (gradient, gradient.contiguous())
        )
        assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


@every_cell
def test_cells_without_bias_match_the_reference(cell_type):
    cells, x, state = problem(cell_type, bias=False)
    assert_close(ours(cells, x, state, None), expected(cells, x, state, None))


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (16, 2, 1, 16), (17, 3, 5, 65)], ids=lambda s: "B{}-T{}-I{}-H{}".format(*s)
)
@interpreted_slowly
@every_cell
def test_odd_sizes_match_the_reference(cell_type, sizes):
    cells, x, state = problem(cell_type, sizes=sizes)
    assert_close(ours(cells, x, state, None), expected(cells, x, state, None))


@every_cell
def test_a_batch_may_be_empty(cell_type):
    cell, x, state = single(cell_type, sizes=(0, STEPS, INPUT, HIDDEN))
    output, final = triton.scan(cell, x.requires_grad_(), state, torch.zeros(0, dtype=torch.int64))
    assert output.shape == (STEPS, 0, HIDDEN)
    gradients = torch.autograd.grad(output.sum() + final[0].sum(), [x, *cell.parameters()])
    assert all(torch.all(gradient == 0) for gradient in gradients)


@interpreted_slowly
def test_lengths_that_nobody_could_look_at_end_with_the_sequence():
    cells, x, state = problem(LSTMCell, directions=2)
    wild = torch.tensor(LENGTHS, device=DEVICE).where(torch.tensor(LENGTHS, device=DEVICE) < STEPS, STEPS + 3)
    wild = wild.where(wild > 0, -2)
    tame = wild.clamp(0, STEPS)
    found, wanted = ours(cells, x, state, wild), ours(cells, x, state, tame)
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


def test_lengths_may_be_a_column_of_a_table():
    cells, x, state = problem(LSTMCell, directions=2, sizes=SMALL)
    table = torch.tensor([[2, 0], [0, 0], [1, 0]], dtype=torch.int32, device=DEVICE)
    found, wanted = ours(cells, x, state, table[:, 0]), ours(cells, x, state, table[:, 0].contiguous())
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


@every_cell
def test_gradients_add_up_over_two_backwards(cell_type):
    cell, x, state = single(cell_type, sizes=SMALL)
    for _ in range(2):
        triton.scan(cell, x, state)[0].square().sum().backward()
    once = torch.autograd.grad(triton.scan(cell, x, state)[0].square().sum(), list(cell.parameters()))
    for parameter, gradient in zip(cell.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_each_tensor_of_the_state_keeps_its_type():
    cell, x, (h, c) = single(LSTMCell, sizes=SMALL)
    _, (h_n, c_n) = triton.scan(cell, x, (h.half(), c))
    assert (h_n.dtype, c_n.dtype) == (torch.float16, torch.float32)


def test_outputs_of_use_may_be_changed_in_place():
    cell, x, state = single(LSTMCell, sizes=SMALL)
    with torch.no_grad():
        output, _ = triton.scan(cell, x, state)
    scale = torch.ones((), device=DEVICE, requires_grad=True)
    output.mul_(scale)
    output.sum().backward()
    assert scale.grad is not None


def test_outputs_may_be_changed_in_place_and_a_gradient_that_needs_them_says_so():
    cell, x, state = single(LSTMCell)
    output, _ = triton.scan(cell, x.requires_grad_(), state)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_gradients_of_an_autocast_forward_are_the_same_inside_and_outside_of_autocast():
    cell, x, state = single(LSTMCell)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    found = []
    for inside in (True, False):
        with torch.autocast(DEVICE, torch.float16):
            output, _ = triton.scan(cell, x.requires_grad_(), state, lengths, True)
        with torch.autocast(DEVICE, torch.float16, enabled=inside):
            found.append(torch.autograd.grad(output.float().square().sum(), list(cell.parameters())))
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))


def test_sizes_that_do_not_fit_are_refused():
    cell, x, (h, c) = single(LSTMCell)
    with pytest.raises(ValueError, match=r"c must be \(18, 33\) on .*, got \(17, 33\)"):
        triton.scan(cell, x, (h, c[1:]))
    with pytest.raises(ValueError, match="input must be"):
        triton.scan(cell, x[:, :, 1:], (h, c))


@interpreted_slowly
@every_cell
def test_a_second_backward_gives_the_same_gradients(cell_type):
    cell, x, state = single(cell_type)
    loss = triton.scan(cell, x.requires_grad_(), state)[0].square().sum()
    leaves = [x, *cell.parameters()]
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(mine, other) for mine, other in zip(first, second, strict=True))


def test_no_two_gradients_share_memory():
    cells, x, _ = problem(LSTMCell, directions=2, sizes=SMALL)
    leaves = [x.requires_grad_(), *(parameter for cell in cells for parameter in cell.parameters())]
    found = torch.autograd.grad(triton.scan_layer(cells, x)[0].square().sum(), leaves)
    assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == len(found)


@every_cell
def test_all_that_is_kept_for_backward_passes_the_hooks_of_autograd(cell_type):
    cell, x, state = single(cell_type, sizes=SMALL)
    wanted = torch.autograd.grad(triton.scan(cell, x, state)[0].square().sum(), list(cell.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor.clone()):
        output, _ = triton.scan(cell, x, state)
    assert not any(isinstance(value, torch.Tensor) for value in vars(output.grad_fn).values())
    for _ in range(2):
        found = torch.autograd.grad(output.square().sum(), list(cell.parameters()), retain_graph=True)
        assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


@every_cell
def test_without_gradients_the_outputs_are_the_same(cell_type):
    cell, x, state = single(cell_type)
    learning, final = triton.scan(cell, x, state)
    with torch.no_grad():
        output, last = triton.scan(cell, x, state)
    assert torch.equal(output, learning)
    assert all(torch.equal(mine, other) for mine, other in zip(last, final, strict=True))


def test_second_derivatives_are_refused():
    cell, x, state = single(LSTMCell)
    output, _ = triton.scan(cell, x.requires_grad_(), state)
    with pytest.raises(RuntimeError, match="no second derivatives: use backend='reference'"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@every_cell
def test_under_autocast_products_are_in_half_precision_and_states_in_single(cell_type):
    # The interpreter can't multiply bfloat16.
    cell, x, state = single(cell_type)
    with torch.autocast(DEVICE, torch.float16):
        output, final = triton.scan(cell, x, state)
    assert output.dtype == torch.float16
    assert all(tensor.dtype == torch.float32 for tensor in final)
    wanted, last = reference.scan(cell, x, state)
    assert_close([output, *final], [wanted.double(), *(tensor.double() for tensor in last)], 5e-3)
    assert not torch.equal(output.float(), wanted)


def test_a_stack_matches_torch(monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda cell, x: None)
    layer = LSTM(INPUT, 20, num_layers=2, bidirectional=True, backend="triton").to(DEVICE)
    x = torch.randn(5, 6, INPUT, device=DEVICE)
    output, (h, c) = layer(x)
    wanted, (h_n, c_n) = to_torch(layer).double()(x.double())
    assert_close([output, h, c], [wanted, h_n, c_n])
    assert layer.chosen_backend == "triton"


class OwnCell(RNNCell):
    """Might have equations of its own."""


def test_what_it_cannot_run_has_a_reason(monkeypatch):
    assert triton.why_not(OwnCell(2, 3), torch.zeros(1, 1, 2)) == (
        "it knows RNNCell, GRUCell and LSTMCell, not OwnCell"
    )
    assert triton.why_not(LSTMCell(2, 3), torch.zeros(1, 1, 2)) == "the tensors are on cpu"
    monkeypatch.setattr(triton, "_why_not_on", lambda device: None)
    assert "not float64" in str(triton.why_not(LSTMCell(2, 3).double(), torch.zeros(1, 1, 2, dtype=torch.float64)))
    mixed = str(triton.why_not(LSTMCell(2, 3), torch.zeros(1, 1, 2, dtype=torch.bfloat16)))
    assert mixed == "the input is torch.bfloat16 on cpu, the weights are torch.float32 on cpu"
    with torch.autocast("cpu"):
        assert triton.why_not(LSTMCell(2, 3), torch.zeros(1, 1, 2, dtype=torch.bfloat16)) is None


@pytest.mark.parametrize(
    ("multiprocessors", "memory"),
    [(16, 99 << 10), (24, 99 << 10), (108, 163 << 10), (132, 227 << 10)],
    ids=["slice", "consumer", "A100", "H100"],
)
def test_every_plan_covers_all_units_and_fits_into_the_gpu(monkeypatch, multiprocessors, memory):
    monkeypatch.setattr(triton, "_capacity", lambda device: (multiprocessors, memory))
    triton._plan.cache_clear()
    arithmetic = [(torch.float32, "tf32x3", 8), (torch.float32, "tf32", 4), (torch.bfloat16, "tf32", 2)]
    for kind, (dtype, precision, size), hidden, batch in itertools.product(
        range(4), arithmetic, (1, 16, 33, 64, 100, 128, 200, 256, 300, 512, 1000), (1, 100, 5000)
    ):
        each = triton._Problem(kind, 2, 0, dtype, (torch.float32,), precision)
        plan = triton._plan(each, hidden, batch, torch.device("cuda"))
        assert plan.padded >= hidden
        assert (plan.split - 1) * plan.units < hidden <= plan.split * plan.units
        assert plan.split > 1 or not plan.stream
        assert plan.split > 1 or plan.units == plan.padded
        assert plan.split * each.directions <= multiprocessors
        assert plan.stream or triton.GATES[kind] * plan.padded * plan.units * size < memory
    triton._plan.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="triton compiles on Linux only")
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("GRU", "LSTM")),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("RNN", "GRU_reset_after")),
    ],
)
def test_the_kernels_compile_in_every_combination_of_types_and_arguments(name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.rnn_cells.compile_kernels", name]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert f"{name}: 5 times forward, " in outcome.stdout


@needs_gpu
@pytest.mark.parametrize("hidden", [64, 128, 256, 512])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@every_cell
def test_each_precision_keeps_its_promise_on_a_gpu(cell_type, precision, hidden):
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    cells, x, state = problem(cell_type, directions=2, sizes=(50, 24, 20, hidden))
    lengths = torch.randint(0, 25, (50,), device=DEVICE)
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            found = ours(cells, x, state, lengths)
    finally:
        torch.set_float32_matmul_precision("highest")
    tolerance = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 2e-2}[precision]
    assert_close(found, expected(cells, x, state, lengths), tolerance)


@needs_gpu
def test_more_sequences_than_the_gpu_holds_at_once_match_the_reference():
    cells, x, state = problem(GRUCell, directions=2, sizes=(3000, 5, 3, 256))
    assert_close(ours(cells, x, state, None), expected(cells, x, state, None))


@needs_gpu
@every_cell
def test_what_is_launched_again_takes_other_sizes_and_weights_from_anywhere(cell_type):
    for batch, hidden, offset in ((18, 33, 0), (5, 33, 0), (18, 33, 1), (40, 128, 1), (40, 128, 0)):
        cells, x, state = problem(cell_type, sizes=(batch, STEPS, INPUT, hidden))
        for name, parameter in cells[0].named_parameters():
            flat = torch.empty(parameter.numel() + offset, device=DEVICE)
            moved = flat[offset:].view_as(parameter).copy_(parameter.detach())
            setattr(cells[0], name, torch.nn.Parameter(moved))
        assert_close(ours(cells, x, state, None), expected(cells, x, state, None))


@needs_gpu
def test_a_training_step_can_be_captured_in_a_cuda_graph():
    layer = LSTM(8, 128, bidirectional=True, batch_first=False, backend="triton").cuda()
    x = torch.randn(20, 40, 8, device=DEVICE)
    lengths = torch.randint(0, 21, (40,), device=DEVICE)

    def step():
        output, (h, _) = layer(x, lengths=lengths)
        return torch.autograd.grad(output.square().sum() + h.sum(), list(layer.parameters()))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.normal_()
    lengths.random_(0, 21)
    graph.replay()
    assert all(torch.equal(mine, other) for mine, other in zip(captured, step(), strict=True))
