"""The scan over time in one launch on an NVIDIA GPU: the kernels of `kernels.py`, and the matrix products around them.

The products of all steps with the input's weights, and those that give the weights' gradients, are torch's. In float32
they and the kernels use TF32 where torch's products may (`torch.set_float32_matmul_precision("high")`); otherwise the
kernels split each factor into three such numbers, which is as exact as float32. Under autocast the operands are of its
type; state and sums stay float32.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnn_cells.cells import Cell, GRUCell, LSTMCell, RNNCell, State

RNN_KIND, LSTM_KIND, GRU_KIND, GRU_AFTER_KIND = range(4)  # as in kernels.py
GATES = (1, 4, 3, 3)
BLOCKS = (1, 4, 4, 4)  # kept of each step: the gates, and the product that a GRU's reset gate belongs to
ROWS = 16  # sequences per program: the least that a tensor core multiplies
WEIGHT_BYTES = 128 << 10  # of recurrent weights per program
LEAST_UNITS = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(cell: Cell, x: Tensor) -> str | None:
    """What keeps this backend from running `cell` on `x`."""
    kind = _kind(cell)
    if kind is None:
        return f"it knows RNNCell, GRUCell and LSTMCell, not {type(cell).__name__}"
    if reason := _why_not_here(x.device):
        return reason
    if x.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    weight, mixed = cell.weight_hh, torch.is_autocast_enabled(x.device.type)
    if weight.device != x.device or not (mixed or weight.dtype == x.dtype) or weight.dtype not in DTYPES:
        return f"the input is {x.dtype} on {x.device}, the weights are {weight.dtype} on {weight.device}"
    inside = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    if inside or forward_ad._current_level >= 0:
        return "it has no forward derivatives, and torch.func can't look into it"
    if torch.compiler.is_exporting():
        return "torch.export can't look into it"
    if _plan(kind, cell.hidden_size, *_arithmetic(x)) is None:
        return f"a GPU's multiprocessors can't hold {cell.hidden_size} hidden units in this precision"
    return None


@functools.cache
def _why_not_here(device: torch.device) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"the tensors are on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (on Linux, torch's CUDA builds bring it)"
    if not interpreted and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere (compute capability 8.0)"
    return None


def scan(
    cell: Cell, x: Tensor, state: State, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, State]:
    """Run `cell` over the steps of `x`; see `rnn_cells.scan`."""
    output, (final,) = _scan([cell], x, [state], lengths, reverse)
    return output, final


def scan_both(
    cells: Sequence[Cell], x: Tensor, states: Sequence[State], lengths: Tensor | None = None
) -> tuple[Tensor, list[State]]:
    """Run one cell forwards and another backwards in the same launch; outputs are (T, B, 2*H)."""
    return _scan(cells, x, states, lengths, False)


def _scan(
    cells: Sequence[Cell], x: Tensor, states: Sequence[State], lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, list[State]]:
    if lengths is not None:
        dense = lengths.device.type == "cpu" and bool((lengths == len(x)).all())
        lengths = None if dense else lengths.to(x.device, torch.int32, non_blocking=True)
    weights = [w for cell in cells for w in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]
    inputs = (x, *weights, *(tensor for state in states for tensor in state))
    learning = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    problem = _Problem(_kind(cells[0]), len(cells), int(reverse), *_arithmetic(x))
    output, *finals = _Scan.apply(problem, lengths, learning, *inputs)
    names = len(states[0])
    return output, [tuple(finals[start : start + names]) for start in range(0, len(finals), names)]


def _kind(cell: Cell) -> Any:
    # The exact types: a subclass may have equations of its own.
    if type(cell) is GRUCell:
        return GRU_AFTER_KIND if cell.reset_after else GRU_KIND
    return {RNNCell: RNN_KIND, LSTMCell: LSTM_KIND}.get(type(cell))


def _arithmetic(x: Tensor) -> tuple[torch.dtype, str]:
    """The operands' type, and how float32 ones are multiplied."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return dtype, "tf32" if torch.get_float32_matmul_precision() != "highest" else "tf32x3"


class _Problem(NamedTuple):
    """What the shapes don't say."""

    kind: int
    directions: int
    backwards: int
    dtype: torch.dtype
    precision: str


class _Plan(NamedTuple):
    """How the hidden units are shared out: `split` programs have `units` each, `padded` is H's next power of two."""

    padded: int
    units: int
    split: int
    warps: int


@functools.cache
def _plan(kind: int, hidden: int, dtype: torch.dtype, precision: str) -> _Plan | None:
    padded = max(LEAST_UNITS, 1 << (hidden - 1).bit_length())
    size = dtype.itemsize * (2 if dtype == torch.float32 and precision == "tf32x3" else 1)
    units = padded
    while units > LEAST_UNITS and GATES[kind] * padded * units * size > WEIGHT_BYTES:
        units //= 2
    if GATES[kind] * padded * units * size > WEIGHT_BYTES:
        return None
    split = -(-hidden // units)
    return _Plan(padded, units, split, warps=8 if units >= 64 else 4)


class _Sequences(NamedTuple):
    """Lengths on the GPU, which is never waited for; both None if all sequences have all steps."""

    lengths: Tensor | None
    order: Tensor | None

    def missing(self, steps: int) -> Tensor:
        """(T, B, 1): where a sequence has no step."""
        assert self.lengths is not None
        times = torch.arange(steps, device=self.lengths.device)
        return (times[:, None] >= self.lengths).unsqueeze(-1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, lengths: Tensor | None, learning: bool, *inputs: Any) -> Any:
        x, weights, states = _take_apart(problem, inputs)
        sequences = _Sequences(lengths, None if lengths is None else lengths.argsort(descending=True))
        sequence = x.to(problem.dtype)
        if lengths is not None:  # a NaN in the padding must reach neither outputs nor gradients
            sequence = sequence.masked_fill(sequences.missing(len(x)), 0)
        initial = [torch.stack([state[index] for state in states]).float() for index in range(len(states[0]))]
        matrices = torch.stack([w.weight_hh.to(problem.dtype) for w in weights])
        gates, cells, output, finals = _forward(problem, sequences, sequence, weights, matrices, initial, learning)
        if learning:
            ctx.save_for_backward(output, sequence, matrices, *initial, *inputs)
            ctx.problem, ctx.sequences, ctx.gates, ctx.cells = problem, sequences, gates, cells
        kinds = [tensor.dtype for tensor in states[0]]
        return output, *(
            final[direction].to(kind)
            for direction in range(problem.directions)
            for final, kind in zip(finals, kinds, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, doutput: Tensor, *dfinals: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph: what comes out of a kernel would count as constant
            raise RuntimeError("the triton backend has no second derivatives: use backend='reference'")
        problem, sequences = ctx.problem, ctx.sequences
        count = 2 if problem.kind == LSTM_KIND else 1
        output, sequence, matrices, *rest = ctx.saved_tensors
        initial, inputs = rest[:count], rest[count:]
        _, weights, _ = _take_apart(problem, inputs)
        gates, cells, ctx.gates, ctx.cells = ctx.gates, ctx.cells, None, None
        if gates is None:  # a second backward through the same graph: the first one has overwritten them
            gates, cells, _, _ = _forward(problem, sequences, sequence, weights, matrices, initial, True)
        dstates = [torch.stack(dfinals[index::count]).float() for index in range(count)]
        dgates = torch.empty_like(gates) if problem.kind == RNN_KIND else gates
        doutput = doutput.to(problem.dtype).contiguous()
        _backward(problem, sequences, gates, dgates, output, cells, doutput, matrices, initial, dstates)
        if sequences.lengths is not None:
            dgates.masked_fill_(sequences.missing(len(output))[..., None, None], 0)
        dx, gradients = _products(problem, sequences, dgates, output, sequence, weights, initial[0], ctx.needs_input_grad[3])
        per_state = [dstate[direction] for direction in range(problem.directions) for dstate in dstates]
        return None, None, None, dx, *gradients, *per_state


class _Weights(NamedTuple):
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def _take_apart(problem: _Problem, inputs: Sequence[Any]) -> tuple[Tensor, list[_Weights], list[State]]:
    """x, the weights of each direction, and its initial state."""
    x, *rest = inputs
    weights = [_Weights(*rest[4 * direction : 4 * direction + 4]) for direction in range(problem.directions)]
    tensors = rest[4 * problem.directions :]
    count = len(tensors) // problem.directions
    return x, weights, [tuple(tensors[start : start + count]) for start in range(0, len(tensors), count)]


def _forward(
    problem: _Problem,
    sequences: _Sequences,
    x: Tensor,
    weights: list[_Weights],
    matrices: Tensor,
    initial: list[Tensor],
    learning: bool,
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """Gates (T, B, D, S, H), an LSTM's cells (T, B, D, H), outputs (T, B, D*H) and the final state (D, B, H)."""
    kind, directions, dtype = problem.kind, problem.directions, problem.dtype
    steps, batch, _ = x.shape
    hidden = matrices.shape[2]
    ragged = sequences.lengths is not None
    gates = x.new_empty(steps, batch, directions, BLOCKS[kind], hidden)
    flat, table = x.reshape(steps * batch, -1), gates.view(steps * batch, directions, -1)
    for direction, (weight_ih, _, bias_ih, _) in enumerate(weights):
        projected, matrix = table[:, direction, : GATES[kind] * hidden], weight_ih.to(dtype).t()
        if bias_ih is None:
            torch.mm(flat, matrix, out=projected)
        else:
            torch.addmm(bias_ih.to(dtype), flat, matrix, out=projected)
    if kind == RNN_KIND:  # all that it keeps is its output
        output = gates.view(steps, batch, -1)
    else:
        output = (torch.zeros if ragged else torch.empty)(steps, batch, directions * hidden, dtype=dtype, device=x.device)
    cells = x.new_empty(steps, batch, directions, hidden) if learning and kind == LSTM_KIND else None
    biased = weights[0].bias_hh is not None
    bias = torch.stack([w.bias_hh for w in weights]) if biased else None  # pyright: ignore[reportArgumentType]
    finals = [tensor.clone() for tensor in initial]
    plan = _plan(kind, hidden, dtype, problem.precision)
    assert plan is not None
    mail = None
    if plan.split > 1:
        mail = x.new_empty(2, directions, batch, 2, hidden)
        mail[0, :, :, 0] = initial[0]
    cn = finals[1] if kind == LSTM_KIND else None
    tensors = (gates, output, cells, matrices, bias, finals[0], cn, mail)
    _launch("forward", problem, plan, sequences, steps, batch, hidden, tensors, BIAS=biased, SAVE=learning)
    if ragged and kind == RNN_KIND:
        output.masked_fill_(sequences.missing(steps), 0)
    return gates, cells, output, finals


def _backward(
    problem: _Problem,
    sequences: _Sequences,
    gates: Tensor,
    dgates: Tensor,
    output: Tensor,
    cells: Tensor | None,
    doutput: Tensor,
    matrices: Tensor,
    initial: list[Tensor],
    dstates: list[Tensor],
) -> None:
    """Fill `dgates`, and make gradients of the initial state of those of the final one."""
    kind = problem.kind
    steps, batch, directions, blocks, hidden = gates.shape
    plan = _plan(kind, hidden, problem.dtype, problem.precision)
    assert plan is not None
    mail = gates.new_zeros(2, directions, batch, blocks, hidden) if plan.split > 1 else None
    c0, dc = (initial[1], dstates[1]) if kind == LSTM_KIND else (None, None)
    tensors = (gates, dgates, output, cells, doutput, matrices, initial[0], c0, dstates[0], dc, mail)
    _launch("backward", problem, plan, sequences, steps, batch, hidden, tensors)


def _launch(
    name: str,
    problem: _Problem,
    plan: _Plan,
    sequences: _Sequences,
    steps: int,
    batch: int,
    hidden: int,
    tensors: tuple[Tensor | None, ...],
    **constants: Any,
) -> None:
    """Run a kernel over all rows: at once, or where programs wait for each other as many as the GPU can hold."""
    from rnn_cells.backends import kernels

    kernel = getattr(kernels, name)
    device = tensors[0].device  # pyright: ignore[reportOptionalMemberAccess]
    tiles = -(-batch // ROWS)
    interpreted = device.type != "cuda"
    together = plan.split > 1 and not interpreted
    at_once = max(1, _multiprocessors(device) // (plan.split * problem.directions)) if together else tiles
    # The interpreter runs one program after the other: they meet where a launch ends.
    turns = [(turn, turn + 1) for turn in range(steps + 1)] if interpreted and plan.split > 1 else [(0, steps + 1)]
    options = {"launch_cooperative_grid": True} if together else {}
    for first_tile in range(0, tiles, at_once):
        grid = (min(at_once, tiles - first_tile), problem.directions, plan.split)
        for first, last in turns:
            counters = torch.zeros(tiles * problem.directions if plan.split > 1 else 1, dtype=torch.int32, device=device)
            kernel[grid](
                *tensors,
                counters,
                sequences.order,
                sequences.lengths,
                *(first, last, steps, batch, first_tile, problem.backwards),
                KIND=problem.kind,
                H=hidden,
                G=GATES[problem.kind],
                S=BLOCKS[problem.kind],
                D=problem.directions,
                PADDED=plan.padded,
                UNITS=plan.units,
                SPLIT=plan.split,
                MEET=together,
                ROWS=ROWS,
                RAGGED=sequences.lengths is not None,
                PRECISION=problem.precision,
                num_warps=plan.warps,
                num_stages=1,  # more would read ahead of what the loop writes
                **constants,
                **options,
            )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _products(
    problem: _Problem,
    sequences: _Sequences,
    dgates: Tensor,
    output: Tensor,
    x: Tensor,
    weights: list[_Weights],
    h0: Tensor,
    needs_dx: bool,
) -> tuple[Tensor | None, list[Any]]:
    """The gradients that are products over all steps: of x, and of each direction's weights and biases."""
    steps, batch, directions, blocks, hidden = dgates.shape
    rows, gates = steps * batch, GATES[problem.kind]
    table, inputs = dgates.view(rows, directions, blocks * hidden), x.reshape(rows, -1)
    hs = output.view(steps, batch, directions, hidden)
    dx: Any = None
    gradients: list[Any] = []
    for direction, (weight_ih, _, bias_ih, _) in enumerate(weights):
        ours = table[:, direction]
        of_x = ours[:, : gates * hidden]
        if needs_dx:
            matrix = weight_ih.to(problem.dtype)
            dx = of_x @ matrix if dx is None else dx.addmm_(of_x, matrix)
        # What the recurrent weights were multiplied with: the output one step before; at the first one h0.
        reverse = direction + problem.backwards > 0
        if reverse:
            later, before = ours[: rows - batch], hs[1:, :, direction].reshape(rows - batch, hidden)
            if sequences.lengths is None:
                first = ours[rows - batch :]
            else:
                last = (sequences.lengths.long() - 1).clamp(min=0)
                first = ours.view(steps, batch, -1)[last, torch.arange(batch, device=last.device)]
        else:
            later, before = ours[batch:], hs[:-1, :, direction].reshape(rows - batch, hidden)
            first = ours[:batch]
        start = h0[direction].to(problem.dtype)

        def of_h(block: slice) -> Tensor:
            return torch.addmm(first[:, block].t() @ start, later[:, block].t(), before)  # noqa: B023

        units = slice(0, hidden), slice(0, 2 * hidden), slice(2 * hidden, 3 * hidden), slice(3 * hidden, 4 * hidden)
        if problem.kind == GRU_KIND:
            of_past = ours[:, units[2]].t() @ ours[:, units[3]]
            dweight_hh = torch.cat([of_h(units[1]), of_past])
        elif problem.kind == GRU_AFTER_KIND:
            dweight_hh = torch.cat([of_h(units[1]), of_h(units[3])])
        else:
            dweight_hh = of_h(slice(0, blocks * hidden))
        gradients += [of_x.t() @ inputs, dweight_hh]
        if bias_ih is None:
            gradients += [None, None]
            continue
        sums = ours.sum(0, dtype=torch.float32)
        dbias_ih = sums[: gates * hidden]
        after = problem.kind == GRU_AFTER_KIND
        gradients += [dbias_ih, torch.cat([sums[units[1]], sums[units[3]]]) if after else dbias_ih]
    return None if dx is None else dx.view(x.shape), gradients
