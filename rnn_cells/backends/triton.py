"""The scan over time in one launch on an NVIDIA GPU: the kernels of `kernels.py`, and the matrix products around them.

The products of all steps with the input's weights, and those that give the weights' gradients, are torch's. In float32
they and the kernels use TF32 where torch's products may (`torch.set_float32_matmul_precision("high")`); otherwise the
kernels split each factor into two such numbers, which is as exact as float32. Under autocast the operands are of its
type; state and sums stay float32. Nothing waits for the GPU, and nothing is summed in an order that changes: the same
call gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnn_cells.backends import arguments
from rnn_cells.backends.arguments import (
    GRU_AFTER_KIND,
    GRU_KIND,
    LSTM_KIND,
    RNN_KIND,
    autocast_dtype,
    check,
    dense,
    kind_of,
    weights_of,
)
from rnn_cells.cells import Cell, State

GATES = (1, 4, 3, 3)
BLOCKS = (1, 4, 4, 4)  # kept of each step: the gates, and the product that a GRU's reset gate belongs to
ROWS = 16  # sequences per program: the least that a tensor core multiplies
LEAST_UNITS = 32  # per program
WHOLE_BYTES = 64 << 10  # of recurrent weights, up to which one program takes all
SCRATCH_BYTES = 24 << 10  # of shared memory, for changes of layout
LETTER_BYTES = 1 << 10  # of one sequence's state that a program reads at once: it stands in registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(cell: Cell, x: Tensor, *others: Tensor) -> str | None:
    """What keeps this backend from running `cell` on `x`, from this initial state and with these lengths."""
    if reason := arguments.why_not(cell, x, DTYPES if autocast_dtype(x.device.type) else (x.dtype,)):
        return reason
    if reason := _why_not_on(x.device):
        return reason
    if x.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export can't trace it"
    return arguments.why_not_native([x, *weights_of(cell), *others])


@functools.cache
def _why_not_on(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is missing (on Linux, torch's CUDA builds bring it)"
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is no NVIDIA GPU of compute capability 8.0 or later"
    return None


def scan(
    cell: Cell, x: Tensor, state: State, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, State]:
    """Run `cell` over the steps of `x`; see `rnn_cells.scan`.

    Raises:
        ValueError: sizes or devices don't fit together.
    """
    check(cell, x, state)
    output, final = _scan([cell], x, tuple(tensor.unsqueeze(0) for tensor in state), lengths, reverse)
    return output, tuple(tensor[0] for tensor in final)


def scan_layer(
    cells: Sequence[Cell], x: Tensor, state: State | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Run one cell, or one forwards and another backwards in the same launch; see `rnn_cells.backends.scan_layer`.

    Zeros, which all cells that it runs begin with, are never made.
    """
    for cell in cells:
        check(cell, x, state, (len(cells),))
    return _scan(cells, x, state, lengths, False)


def _scan(
    cells: Sequence[Cell], x: Tensor, state: State | None, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, State]:
    inputs: list[Any] = [x]
    for cell in cells:
        inputs += weights_of(cell)
    inputs += [None] * len(cells[0].state_names) if state is None else state
    if lengths is not None:
        full = lengths.device.type == "cpu" and bool((lengths == len(x)).all())
        lengths = None if full else lengths.to(x.device, torch.int32, non_blocking=True, copy=True).contiguous()
    dtype = autocast_dtype(x.device.type) or x.dtype
    # Zeros have the type of the weights, of which recurrent dropout leaves `weight_ih` as it is.
    states = [inputs[1].dtype] * len(cells[0].state_names) if state is None else [tensor.dtype for tensor in state]
    precision = "tf32" if _allows_tf32() else "tf32x3"
    problem = _Problem(kind_of(cells[0]), len(cells), int(reverse), dtype, tuple(states), precision)
    with _on(x.device):
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
            output, *final = _Scan.apply(problem, lengths, *inputs)
        else:
            _, _, hs, final = _forward(problem, _gather(problem, lengths, inputs), learning=False)
            output = _outputs(hs)
    return output, tuple(final)


def _on(device: torch.device) -> Any:
    """Triton launches on the current GPU; in a backward autograd has set it."""
    away = device.type == "cuda" and torch.cuda.current_device() != device.index
    return torch.cuda.device(device) if away else contextlib.nullcontext()


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9; there the older getters fail once it was set
        return matmul.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


class _Problem(NamedTuple):
    """What the shapes don't say."""

    kind: int
    directions: int
    backwards: int
    dtype: torch.dtype  # of the products' operands
    states: tuple[torch.dtype, ...]  # of the tensors of the initial and the final state
    precision: str  # of float32 products


class _Plan(NamedTuple):
    """How the hidden units are shared out: `split` programs have `units` each; `padded` is H's next power of two."""

    padded: int
    units: int
    split: int
    stream: bool

    @property
    def warps(self) -> int:
        return 8 if self.units >= 64 else 4


@functools.cache
def _plan(problem: _Problem, hidden: int, batch: int, device: torch.device) -> _Plan:
    """Few units per program make a step short, and one program for all of them saves the waiting."""
    gates, padded = GATES[problem.kind], max(LEAST_UNITS, 1 << (hidden - 1).bit_length())
    size = problem.dtype.itemsize
    if problem.dtype == torch.float32 and problem.precision == "tf32x3":
        size *= 2  # of each factor's two parts
    multiprocessors, memory = _capacity(device)

    def fits(units: int) -> bool:
        return gates * padded * units * size + gates * padded * ROWS * size + SCRATCH_BYTES <= memory

    # The interpreter runs one program after the other, and this kind's meet in the middle of a step.
    alone = device.type != "cuda" and problem.kind == GRU_KIND
    if padded <= LEAST_UNITS or alone or (gates * padded * padded * size <= WHOLE_BYTES and fits(padded)):
        return _Plan(padded, padded, 1, False)
    units = 2 * LEAST_UNITS if gates == 1 and fits(2 * LEAST_UNITS) else LEAST_UNITS
    # Rather more units than sequences that have to wait for others to be finished.
    programs = -(-batch // ROWS) * problem.directions
    while 2 * units < padded and fits(2 * units) and programs * -(-hidden // units) > multiprocessors:
        units *= 2
    stream = (
        not fits(units) or padded * size > LETTER_BYTES or problem.directions * -(-hidden // units) > multiprocessors
    )
    if stream:
        units = LEAST_UNITS
        while problem.directions * -(-hidden // units) > multiprocessors:
            units *= 2
    return _Plan(padded, units, -(-hidden // units), stream)


@functools.cache
def _capacity(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory for a program."""
    if device.type != "cuda":
        return 132, 227 << 10
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


def _missing(lengths: Tensor, steps: int) -> Tensor:
    """(T, B): where a sequence has no step."""
    return torch.arange(steps, device=lengths.device)[:, None] >= lengths


def _stack(tensors: Sequence[Any]) -> Any:
    """(D, …), without a copy if there is one direction; None if all are missing."""
    if len(tensors) == 1:
        return None if tensors[0] is None else dense(tensors[0]).unsqueeze(0)
    if all(tensor is None for tensor in tensors):
        return None
    like = next(tensor for tensor in tensors if tensor is not None)
    return torch.stack([torch.zeros_like(like) if tensor is None else tensor for tensor in tensors])


class _Inputs(NamedTuple):
    """The tensors of a scan, those of both directions together; without a copy if there is one."""

    x: Tensor  # (T, B, I)
    projection: Tensor  # (D, G*H, I), `weight_ih`
    weight: Tensor  # (D, G*H, H)
    bias_ih: Tensor | None  # (D, G*H)
    bias_hh: Tensor | None
    h0: Tensor | None  # (D, B, H); zeros if None
    c0: Tensor | None
    lengths: Tensor | None  # (B,)
    order: Tensor | None  # (B,): the sequences by length, so that those of a program end together


def _gather(problem: _Problem, lengths: Tensor | None, tensors: Sequence[Any]) -> _Inputs:
    dtype, count = problem.dtype, 4 * problem.directions
    x, weights, (h0, *others) = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
    return _Inputs(
        x=x.to(dtype),
        projection=_stack([weight.to(dtype) for weight in weights[::4]]),
        weight=_aligned(_stack([weight.to(dtype) for weight in weights[1::4]])),
        bias_ih=_stack(weights[2::4]),
        bias_hh=_stack(weights[3::4]),
        h0=_dense(h0),
        c0=_dense(others[0]) if others else None,
        lengths=lengths,
        order=None if lengths is None else lengths.argsort(descending=True),
    )


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else dense(tensor)


def _aligned(tensor: Tensor) -> Tensor:
    """Beginning where the kernels can read it by 16 bytes, as all memory of torch does but not every part of it."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _columns(table: Tensor, projection: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The columns of a table of blocks (T, B, D, S, H) that belong to `x W`, (T*B, …), and the rows of all W.

    All directions go together, unless the fourth block of a GRU, which is no part of `x W`, lies between them.
    """
    steps, batch, directions, blocks, hidden = table.shape
    table, width = table.view(steps * batch, directions * blocks * hidden), projection.shape[1]
    if width == blocks * hidden:
        return [(table, projection.flatten(0, 1))]
    starts = range(0, directions * blocks * hidden, blocks * hidden)
    return [(table[:, start : start + width], weight) for start, weight in zip(starts, projection, strict=True)]


def _outputs(hs: Tensor) -> Tensor:
    """All but the first and the last step, (T, B, D*H); no view in the eyes of autograd, or nobody could change it."""
    steps, batch, directions, hidden = hs.shape
    shape = (steps - 2, batch, directions * hidden)
    return hs.new_empty(0).set_(hs.untyped_storage(), hs.stride(0), shape, (hs.stride(0), hs.stride(1), 1))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, lengths: Tensor | None, *tensors: Any) -> Any:
        inputs = _gather(problem, lengths, tensors)
        gates, cells, hs, final = _forward(problem, inputs, learning=True)
        output = _outputs(hs)
        # With the output, so that autograd sees when it was changed. The gates of an RNN are its outputs.
        arguments.save(ctx, output, hs, None if problem.kind == RNN_KIND else gates, cells, *inputs)
        ctx.problem = problem
        ctx.unread = threading.Lock()  # for the backward that leaves its gradients in the place of the gates
        ctx.set_materialize_grads(False)
        return output, *final

    @staticmethod
    def backward(ctx: Any, doutput: Tensor | None, *dfinal: Tensor | None) -> Any:
        problem: _Problem = ctx.problem
        kept = arguments.saved(ctx, "triton", (doutput, *dfinal))
        aligned: list[Any] = [None if tensor is None else _aligned(tensor) for tensor in kept]
        _, hs, gates, cells, *others = aligned
        inputs = _Inputs(*others)
        if problem.kind == RNN_KIND:
            gates = hs[1:-1].unsqueeze(3)
        elif not ctx.unread.acquire(blocking=False):  # another backward through the same graph has overwritten them
            gates, cells, hs, _ = _forward(problem, inputs, True)
        del kept, aligned, others
        ctx.maybe_clear_saved_tensors()  # the products need the memory
        dgates = torch.empty_like(gates) if problem.kind == RNN_KIND else gates
        _, batch, directions, blocks, hidden = gates.shape
        plan = _plan(problem, hidden, batch, gates.device)
        dstate = [gates.new_empty(directions, batch, hidden, dtype=dtype) for dtype in problem.states]
        dfinal = tuple(_dense(tensor) for tensor in dfinal)
        dout = None if doutput is None else doutput.detach().resolve_neg().to(problem.dtype)
        if dout is not None and (dout.stride(-1) > 1 or max(dout.stride()) >= 2**31):  # the kernel takes 32 bits
            dout = dout.contiguous()
        dout_step, dout_row, dout_unit = (0, 0, 0) if dout is None else dout.stride()
        mail = gates.new_zeros(2, directions, batch, blocks, hidden) if plan.split > 1 else None
        lstm, dbias = problem.kind == LSTM_KIND, None
        if inputs.bias_ih is not None:
            dbias = gates.new_empty(-(-batch // ROWS), directions, blocks * hidden, dtype=torch.float32)
        tensors = {
            **{"gates": gates, "dgates": dgates, "hs": hs, "cells": cells, "dout": dout, "weight": inputs.weight},
            **{"h0": inputs.h0, "c0": inputs.c0, "dhn": dfinal[0], "dcn": dfinal[1] if lstm else None},
            **{"dh0": dstate[0], "dc0": dstate[1] if lstm else None, "dbias": dbias},
            **{"mail": mail, "order": inputs.order, "lengths": inputs.lengths},
        }
        strides = {"dout_step": dout_step, "dout_row": dout_row, "DOUT_UNIT": min(dout_unit, 1)}
        _launch("backward", problem, plan, tensors, strides)
        del gates, cells, dout, mail, tensors  # the products need the memory
        with torch.autocast(hs.device.type, enabled=False):  # backward may be called inside of one
            gradients = _products(problem, inputs, dgates, hs, dbias, needs_dx=ctx.needs_input_grad[2])
        return None, None, *gradients, *([None] * len(dstate) if inputs.h0 is None else dstate)


def _forward(
    problem: _Problem, inputs: _Inputs, learning: bool
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
    """Gates (T, B, D, S, H), an LSTM's cells (T, B, D, H), outputs between initial states (T + 2, B, D, H), finals."""
    kind, directions, x = problem.kind, problem.directions, inputs.x
    steps, batch, _ = x.shape
    hidden = inputs.weight.shape[2]
    # Behind a sequence's end outputs are zero.
    hs = (x.new_empty if inputs.lengths is None else x.new_zeros)(steps + 2, batch, directions, hidden)
    shape = (steps, batch, directions, BLOCKS[kind], hidden)
    gates = hs[1:-1].unsqueeze(3) if kind == RNN_KIND else x.new_empty(shape)
    rows = x.reshape(-1, x.shape[2])
    for part, weight in _columns(gates, inputs.projection):
        torch.mm(rows, weight.t(), out=part)
    plan = _plan(problem, hidden, batch, x.device)
    mail = None
    if plan.split > 1:
        mail = x.new_zeros(2, directions, batch, 2, hidden)
        if inputs.h0 is not None:
            mail[0, :, :, 0] = inputs.h0
    cells = x.new_empty(steps, batch, directions, hidden) if learning and kind == LSTM_KIND else None
    final = tuple(x.new_empty(directions, batch, hidden, dtype=dtype) for dtype in problem.states)
    tensors = {
        **{"gates": gates, "hs": hs, "cells": cells, "weight": inputs.weight},
        **{"bias_ih": inputs.bias_ih, "bias_hh": inputs.bias_hh, "h0": inputs.h0, "c0": inputs.c0},
        **{"hn": final[0], "cn": final[1] if kind == LSTM_KIND else None},
        **{"mail": mail, "order": inputs.order, "lengths": inputs.lengths},
    }
    _launch("forward", problem, plan, tensors, {"SAVE": learning})
    if inputs.lengths is not None and kind == RNN_KIND:
        hs[1:-1].masked_fill_(_missing(inputs.lengths, steps)[..., None, None], 0)
    return gates, cells, hs, final


CARRIED = {"h0": "hn", "c0": "cn", "dhn": "dh0", "dcn": "dc0"}
"""What a launch that goes on from another one takes from it."""


_compiled: dict[Any, Any] = {}
"""What has been launched. To launch it again takes a tenth of the time that Triton needs to find it; settings of Triton
that change in between are not looked at."""


def _launch(
    name: str, problem: _Problem, plan: _Plan, tensors: dict[str, Tensor | None], numbers: dict[str, int]
) -> None:
    """Run a kernel over all sequences: at once, or where programs wait for each other as many as the GPU holds."""
    from rnn_cells.backends import kernels

    kernel, gates = getattr(kernels, name), tensors["gates"]
    assert gates is not None
    steps, batch, directions, blocks, hidden = gates.shape
    tiles = at_once = -(-batch // ROWS)
    meet, interpreted = plan.split > 1, gates.device.type != "cuda"  # with TRITON_INTERPRET=1, for tests
    tensors["counters"] = gates.new_zeros(tiles * directions, dtype=torch.int32) if meet else None
    if meet and not interpreted:
        at_once = max(1, _capacity(gates.device)[0] // (plan.split * directions))
    arguments = {
        **{"steps": steps, "batch": batch, "backwards": problem.backwards, **numbers},
        **{"KIND": problem.kind, "H": hidden, "G": GATES[problem.kind], "S": blocks, "D": directions},
        **{"PADDED": plan.padded, "UNITS": plan.units, "SPLIT": plan.split, "STREAM": plan.stream},
        **{"MEET": meet and not interpreted, "R": ROWS, "PRECISION": problem.precision},
    }
    # The interpreter runs one program after the other: there they meet between launches.
    turns = [(turn, turn + 1) for turn in range(steps + 1)] if meet and interpreted else [(0, steps + 1)]
    # All that the compiler looks at: of the other numbers and of `kernels.GIVEN` it only knows the type, and what is
    # made here begins where it likes it to (an RNN's gates, a step into its outputs, are read one by one if H is odd).
    key = (name, gates.device, problem, plan, hidden, *(value for each, value in numbers.items() if each.isupper()))
    key += tuple([None if tensor is None else tensor.dtype for tensor in tensors.values()])
    for first_tile in range(0, tiles, max(1, at_once)):
        grid = (min(at_once, tiles - first_tile), directions, plan.split)
        for first, last in turns:
            if first > 0:
                tensors |= {ours: tensors[theirs] for ours, theirs in CARRIED.items() if theirs in tensors}
            arguments |= {**tensors, "first": first, "last": last, "first_tile": first_tile}
            if key in _compiled:
                _compiled[key][grid](*[arguments[parameter] for parameter in kernel.arg_names])
                continue
            # A cooperative grid: an error rather than programs that wait for some that never start. One stage: more
            # would read ahead of what the loop writes.
            compiled = kernel[grid](
                **arguments,
                **({"launch_cooperative_grid": True} if meet and not interpreted else {}),
                **{"num_warps": plan.warps, "num_stages": 1},
            )
            if compiled is not None:  # as it is under the interpreter
                _compiled[key] = compiled


def _products(
    problem: _Problem, inputs: _Inputs, dgates: Tensor, hs: Tensor, dbias: Tensor | None, needs_dx: bool
) -> list[Any]:
    """The gradients of x, and of each direction's weights, which are products over all steps, and biases."""
    steps, batch, directions, blocks, hidden = dgates.shape
    rows, kind, x = steps * batch, problem.kind, inputs.x
    if inputs.lengths is not None:  # a NaN in the padding must not reach the gradients
        missing = _missing(inputs.lengths, steps)
        dgates.masked_fill_(missing[..., None, None, None], 0)
        x = x.masked_fill(missing[..., None], 0)
    columns, flat = _columns(dgates, inputs.projection), x.reshape(rows, x.shape[2])
    dweight_ih: Any = [part.t() @ flat for part, _ in columns]
    if len(dweight_ih) < directions:
        dweight_ih = dweight_ih[0].chunk(directions)
    del x, flat  # if it is a copy, the gradient of x takes its place
    table = dgates.view(rows, directions, blocks * hidden)
    by_direction = table.permute(1, 2, 0)
    # What `h U` was the product of: the outputs one step before, forwards from hs[0] on, backwards from hs[2] on.
    ahead = 2 * batch * directions * hidden
    strides = (ahead + hidden, directions * hidden, 1)
    before = hs.as_strided((directions, rows, hidden), strides, problem.backwards * ahead)
    dweight_hh = torch.bmm(by_direction, before)
    if inputs.lengths is not None and inputs.h0 is not None and (problem.backwards or directions == 2):
        # Backwards, the first step of a sequence that ends early finds a zero there instead of its initial state.
        early = torch.where((inputs.lengths < steps)[:, None], inputs.h0[-1], 0).to(problem.dtype)
        last = (inputs.lengths.long() - 1).clamp(0, steps - 1)
        firsts = dgates[last, torch.arange(batch, device=last.device), -1].flatten(1)
        dweight_hh[-1].addmm_(firsts.t(), early)
    dweight_hh = dweight_hh.view(directions, blocks, hidden, hidden)
    if kind == GRU_KIND:
        candidate, past = (dgates[:, :, :, block].reshape(rows, directions, hidden) for block in (2, 3))
        of_past = torch.bmm(candidate.permute(1, 2, 0), past.transpose(0, 1))
        dweight_hh = torch.cat([dweight_hh[:, :2], of_past.unsqueeze(1)], dim=1)
    elif kind == GRU_AFTER_KIND:
        dweight_hh = torch.cat([dweight_hh[:, :2], dweight_hh[:, 3:]], dim=1)
    dbias_ih: Any = [None] * directions
    dbias_hh: Any = dbias_ih
    if dbias is not None:
        sums = dbias.sum(0)
        dbias_ih = sums[:, : GATES[kind] * hidden]
        dbias_hh = dbias_ih.clone()
        if kind == GRU_AFTER_KIND:
            dbias_hh[:, 2 * hidden :] = sums[:, 3 * hidden :]
    gradients: list[Any] = [None]
    if needs_dx:
        (part, weight), *others = columns
        dx = part @ weight
        for part, weight in others:
            dx.addmm_(part, weight)
        gradients = [dx.view(inputs.x.shape)]
    for each in zip(dweight_ih, dweight_hh.flatten(1, 2), dbias_ih, dbias_hh, strict=True):
        # Each in memory of its own: what becomes a parameter's `grad` is changed in place.
        gradients += each if directions == 1 else [None if part is None else part.clone() for part in each]
    return gradients
