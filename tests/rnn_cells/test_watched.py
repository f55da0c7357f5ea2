"""What watches or transforms torch's operations, or holds no plain memory: right, or refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn.utils import prune, spectral_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from rnn_cells import GRU, LSTM, Cell, GRUCell, scan
from rnn_cells.backends import cpu

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(cpu._library()[1] is not None, reason=f"cpu backend: {cpu._library()[1]}")
# torch.jit says of itself that it is old; the sizes that a trace takes for constants are those of its example.
traces = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def expected(layer, *arguments, **options):
    """What the reference gives."""
    backend, layer.backend = layer.backend, "reference"
    result = layer(*arguments, **options)
    layer.backend = backend
    return result


def gradients(layer, x, **options):
    return torch.autograd.grad(layer(x, **options)[0].square().sum(), list(layer.parameters()))


@traces
def test_a_trace_computes_what_the_layer_does_for_other_inputs(layer_type):
    layer = layer_type(3, 4, num_layers=2, bidirectional=True)
    traced: Any = torch.jit.trace(layer, torch.randn(2, 5, 3))
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(traced(x), expected(layer, x))


@traces
def test_a_trace_takes_lengths_as_an_input():
    layer, x = GRU(3, 4), torch.randn(2, 5, 3)
    traced: Any = torch.jit.trace(layer, (x, torch.zeros(1, 2, 4), torch.tensor([5, 2])))
    lengths = torch.tensor([1, 4])
    torch.testing.assert_close(traced(x, torch.zeros(1, 2, 4), lengths), expected(layer, x, None, lengths))


@pytest.mark.parametrize("pre_dispatch", [False, True], ids=["make_fx", "pre_dispatch"])
def test_a_graph_of_make_fx_computes_what_the_layer_does_for_other_inputs(pre_dispatch):
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = LSTM(3, 4)
    graph = make_fx(lambda x: layer(x)[0], pre_dispatch=pre_dispatch)(torch.randn(2, 5, 3))
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(graph(x), expected(layer, x)[0])


def test_an_exported_layer_takes_lengths_as_an_input():
    layer, x = GRU(3, 4), torch.randn(2, 5, 3)
    program = torch.export.export(layer, (x,), {"lengths": torch.tensor([5, 2])}, strict=False)
    lengths = torch.tensor([1, 4])
    torch.testing.assert_close(program.module()(x, lengths=lengths), expected(layer, x, lengths=lengths))


def test_flops_are_counted():
    layer, x = LSTM(3, 4), torch.randn(2, 5, 3)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    products = 2 * 2 * 5 * (3 + 4) * 16  # multiply and add, B, T, I + H, 4 H
    assert counter.get_total_flops() == products


def test_fake_tensors_have_shapes_and_no_memory(layer_type):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer = layer_type(3, 4, bidirectional=True)
        output, _ = layer(torch.randn(2, 5, 3), lengths=torch.tensor([5, 2]))
        output.sum().backward()
    assert output.shape == (2, 5, 8)
    assert layer.cells[0].weight_hh.grad.shape == layer.cells[0].weight_hh.shape


def test_a_layer_on_the_meta_device_gives_shapes(layer_type):
    layer = layer_type(3, 4, recurrent_dropout=0.5).to("meta")
    output, _ = layer(torch.randn(2, 5, 3, device="meta"), lengths=[5, 2])
    assert (output.shape, output.device.type) == ((2, 5, 4), "meta")


def test_another_default_device_changes_nothing(layer_type):
    layer, x = layer_type(3, 4, bidirectional=True), torch.randn(2, 5, 3)
    wanted = [layer(x), layer(x, lengths=[5, 2]), gradients(layer, x), gradients(layer, x, lengths=(5, 2))]
    torch.set_default_device("meta")
    try:
        found = [layer(x), layer(x, lengths=[5, 2]), gradients(layer, x), gradients(layer, x, lengths=(5, 2))]
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


class Seen(TorchDispatchMode):
    """Counts the operations it sees."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """Counts the functions it sees."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A tensor that says what is done with it."""


@pytest.mark.parametrize("mode", [Seen, Called])
def test_modes_see_every_step(mode):
    layer, x = LSTM(3, 4), torch.randn(2, 9, 3)
    with mode() as short:
        layer(x[:, :3])
    with mode() as long:
        layer(x)
    assert long.count > short.count + 30


@compiled
def test_a_backward_that_a_mode_could_not_see_is_refused():
    layer = LSTM(3, 4, backend="cpu")
    output = layer(torch.randn(2, 5, 3))[0].sum()
    with FlopCounterMode(display=False), pytest.raises(RuntimeError, match="a TorchDispatchMode can't record it"):
        output.backward()


@compiled
def test_a_batch_of_gradients_is_refused():
    layer = LSTM(3, 4, backend="cpu")
    output = layer(torch.randn(2, 5, 3))[0]
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.autograd.grad(output, [*layer.parameters()], torch.randn(3, *output.shape), is_grads_batched=True)


UNUSUAL = {
    "a subclass": lambda x: x.as_subclass(Marked),
    "sparse": lambda x: x.to_sparse(),
    "functional": cast("Any", torch)._to_functional_tensor,
}


@compiled
@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_tensors_without_plain_memory_never_reach_native_code(make):
    cell, x = GRUCell(3, 4), torch.randn(5, 2, 3)
    h, lengths = torch.randn(2, 4), torch.tensor([5, 2])
    for arguments in ((make(x), h, lengths), (x, make(h), lengths), (x, h, make(lengths))):
        assert "it reads plain dense tensors" in str(cpu.why_not(cell, *arguments))
    cell.weight_hh = nn.Parameter(make(cell.weight_hh.detach()))
    assert "it reads plain dense tensors" in str(cpu.why_not(cell, x))


def test_a_pending_negation_is_carried_out(build, layer_type):
    layer, negated = build(layer_type, 3, 4), cast("Any", torch)._neg_view
    x, h = torch.randn(2, 5, 3, dtype=torch.float64), [torch.randn(1, 2, 4, dtype=torch.float64) for _ in "hc"]
    h = h[: len(layer.cells[0].state_names)]
    torch.testing.assert_close(
        layer(negated(x), tuple(negated(each) for each in h)),
        expected(layer, -x, tuple(-each for each in h)),
        rtol=0,
        atol=1e-12,
    )


def test_weights_may_share_memory_among_themselves(build):
    layer, x = build(LSTM, 3, 4), torch.randn(2, 5, 3, dtype=torch.float64)
    row = torch.randn(1, 4, dtype=torch.float64)
    layer.cells[0].weight_hh = nn.Parameter(row.expand(16, 4))
    torch.testing.assert_close(layer(x), expected(layer, x), rtol=0, atol=1e-12)


@compiled
def test_a_tensor_whose_memory_was_freed_is_refused():
    layer, x = LSTM(3, 4, backend="cpu"), torch.randn(2, 5, 3)
    layer.cells[0].weight_hh.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="weight_hh has no memory"):
        layer(x)


# ---- hooks of cells -------------------------------------------------------------------------------------------------


def test_a_pruned_cell_computes_and_learns_with_its_mask(layer_type):
    layer, plain, x = layer_type(3, 4), layer_type(3, 4), torch.randn(2, 5, 3)
    prune.l1_unstructured(layer.cells[0], "weight_hh", 0.5)
    mask = layer.cells[0].weight_hh_mask
    for step in range(3):
        with torch.no_grad():
            layer.cells[0].weight_hh_orig += 0.1 * step
            for name in ("weight_ih", "bias_ih", "bias_hh"):
                getattr(plain.cells[0], name).copy_(getattr(layer.cells[0], name))
            plain.cells[0].weight_hh.copy_(layer.cells[0].weight_hh_orig * mask)
        torch.testing.assert_close(layer(x), plain(x))
        (found,) = torch.autograd.grad(layer(x)[0].square().sum(), layer.cells[0].weight_hh_orig)
        (wanted,) = torch.autograd.grad(plain(x)[0].square().sum(), plain.cells[0].weight_hh)
        torch.testing.assert_close(found, wanted * mask)


def test_spectral_norm_of_a_cell_divides_by_the_largest_singular_value():
    layer, x = LSTM(3, 4), torch.randn(2, 5, 3)
    spectral_norm(layer.cells[0], "weight_hh", n_power_iterations=50)
    layer(x)[0].sum().backward()
    assert torch.linalg.matrix_norm(layer.cells[0].weight_hh, 2).item() == pytest.approx(1, abs=1e-3)
    assert layer.cells[0].weight_hh_orig.grad.abs().sum() > 0


def test_hooks_of_a_cell_see_each_step(layer_type):
    layer, x = layer_type(3, 4), torch.randn(2, 5, 3)
    wanted, seen = layer(x, lengths=[5, 2]), []
    handle = layer.cells[0].register_forward_hook(lambda cell, inputs, result: seen.append(result[0]))
    torch.testing.assert_close(layer(x, lengths=[5, 2]), wanted)
    torch.testing.assert_close(torch.stack(seen, 1)[0], wanted[0][0])
    handle.remove()
    assert layer(x) is not None
    assert len(seen) == 5


@compiled
def test_a_backend_that_would_not_call_hooks_is_refused():
    layer = LSTM(3, 4, backend="cpu")
    layer.cells[0].register_forward_pre_hook(lambda cell, inputs: None)
    with pytest.raises(ValueError, match="the LSTMCell has hooks, which must run at each step"):
        layer(torch.randn(2, 5, 3))


# ---- what is kept for backward --------------------------------------------------------------------------------------


def saved_bytes(layer, x):
    """What a forward leaves to autograd's hooks, the input and the weights aside."""
    sizes = {}
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters())}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output, _ = layer(x)
    return sum(size for address, size in sizes.items() if address not in given), output


@compiled
def test_all_that_grows_with_time_is_saved_where_a_checkpoint_frees_it(layer_type):
    layer, x = layer_type(16, 32, backend="cpu", batch_first=False), torch.randn(50, 8, 16)
    size, output = saved_bytes(layer, x)
    blocks = {"RNNCell": 1, "LSTMCell": 1 + 4 + 1}.get(type(layer.cells[0]).__name__, 1 + 4)
    steps = 50 * 8 * 32 * 4
    assert blocks * steps <= size < (blocks + 0.5) * steps
    node = output.grad_fn
    kept = [value for value in vars(node).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in kept) < steps


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_a_checkpointed_layer_has_the_same_gradients(layer_type, reentrant):
    layer, x = layer_type(16, 32), torch.randn(8, 50, 16, requires_grad=True)
    leaves = [x, *layer.parameters()]
    layer(x)[0].square().sum().backward()
    wanted = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(leaf.grad, other) for leaf, other in zip(leaves, wanted, strict=True))


def test_saved_tensors_may_lie_elsewhere_meanwhile(layer_type):
    layer, x = layer_type(16, 32), torch.randn(8, 50, 16)
    wanted = gradients(layer, x)
    with save_on_cpu():
        assert all(torch.equal(*pair) for pair in zip(gradients(layer, x), wanted, strict=True))


@compiled
def test_a_hook_that_gives_back_another_type_is_refused():
    layer = LSTM(3, 4, backend="cpu")
    with saved_tensors_hooks(lambda tensor: tensor.half(), lambda tensor: tensor):
        output = layer(torch.randn(2, 5, 3))[0]
    with pytest.raises(RuntimeError, match="a hook for saved tensors must give back what it got"):
        output.sum().backward()


@compiled
def test_memory_comes_back_when_nothing_refers_to_it():
    pool, x = cpu._Pool(), torch.randn(1)
    first = pool.take(x, 200, 300)
    address, alias = first.data_ptr(), first.detach()[1:]
    del first
    other = pool.take(x, 200, 300)  # `alias` is still there
    assert other.data_ptr() != address
    del alias
    assert pool.take(x, 200, 300).data_ptr() == address


def test_no_two_gradients_share_memory(layer_type):
    for options in ({}, {"bidirectional": True, "num_layers": 2}):
        layer, x = layer_type(3, 4, **options), torch.randn(2, 5, 3)
        found = gradients(layer, x)
        assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == len(found)


PROGRAM = """
import sys, threading, torch
from rnn_cells import LSTM
layer = LSTM(8, 64).double()
parameters = list(layer.parameters())
sys.setswitchinterval(1e-5)
for _ in range(10):
    y = layer(torch.randn(8, 40, 8, dtype=torch.float64))[0].square().sum()
    wanted = torch.autograd.grad(y, parameters, retain_graph=True)
    gate, same = threading.Barrier(3), []
    def work():
        gate.wait()
        found = torch.autograd.grad(y, parameters, retain_graph=True)
        same.append(all(torch.equal(*pair) for pair in zip(found, wanted)))
    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert same == [True] * 3, same
print("passed")
"""


def test_threads_that_share_a_graph_get_the_same_gradients():
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("passed\n", 0), result.stderr


# ---- a cell that changes what it is given ---------------------------------------------------------------------------


class Leaky(Cell):
    """h = h / 2 + tanh(x W_r + b_r), computed in place."""

    num_gates = 1

    def recur(self, gates, state):
        (h,) = state
        return (h.mul_(0.5).add_(gates.tanh_()),)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_cell_may_change_its_state_and_gates_in_place(context):
    cell, x, h = Leaky(2, 3), torch.randn(4, 1, 2), torch.randn(1, 3)
    start, gates = h.clone(), torch.tanh(cell.project(x))
    with context():
        outputs, _ = scan(cell, x, (h,))
    wanted = []
    for step in gates:
        wanted.append((wanted[-1] if wanted else start) * 0.5 + step)
    torch.testing.assert_close(outputs, torch.stack(wanted))
    assert torch.equal(h, start)


@pytest.mark.parametrize("name", ["recur", "project", "forward"])
def test_a_method_replaced_on_one_cell_is_called(name):
    layer, x, calls = LSTM(3, 4), torch.randn(2, 5, 3), []
    wanted, replaced = layer(x)[0], getattr(layer.cells[0], name)

    def watched(*args):
        calls.append(len(args))
        return replaced(*args)

    setattr(layer.cells[0], name, watched)
    torch.testing.assert_close(layer(x)[0], wanted)
    assert calls


class Remembers(Cell):
    """A cell that keeps its state in memory of its own, and gives that out."""

    num_gates = 1

    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__(input_size, hidden_size, bias)
        self.memory = torch.zeros(2, hidden_size)

    def recur(self, gates, state):
        return (self.memory.mul_(0.5).add_(torch.tanh(gates)),)


@torch.no_grad()
def test_outputs_are_those_of_their_steps_whatever_memory_a_cell_gives_out():
    cell, x = Remembers(3, 4), torch.randn(5, 2, 3)
    outputs, (final,) = scan(cell, x)
    wanted, h = [], torch.zeros(2, 4)
    for gates in torch.tanh(cell.project(x)):
        h = 0.5 * h + gates
        wanted.append(h)
    torch.testing.assert_close(outputs, torch.stack(wanted))
    final.zero_()
    assert cell.memory.any()


def test_a_pruned_layer_moves_to_another_type():
    layer = LSTM(3, 4)
    prune.l1_unstructured(layer.cells[0], "weight_hh", 0.4)
    assert layer.double()(torch.randn(2, 5, 3, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_lengths_may_be_integers_of_any_type_on_the_reference(dtype):
    layer, x = LSTM(3, 4, backend="reference"), torch.randn(2, 5, 3)
    lengths = torch.tensor([5, 2])
    torch.testing.assert_close(layer(x, lengths=lengths.to(dtype))[0], layer(x, lengths=lengths)[0])
