"""The scan over time in one native call on the CPU: `cpu.cpp`, compiled on first use.

It is compiled as a plain library without torch's headers, in a fifth of the time that an extension takes, and called
through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rnn_cells.backends import arguments
from rnn_cells.backends.arguments import GRU_KIND, LSTM_KIND, RNN_KIND, check, check_lengths, dense, kind_of, weights_of
from rnn_cells.cells import Cell, State

SOURCE = Path(__file__).with_name("cpu.cpp")


def why_not(cell: Cell, x: Tensor, *others: Tensor) -> str | None:
    """What keeps this backend from running `cell` on `x`, from this initial state and with these lengths."""
    if reason := arguments.why_not(cell, x, (x.dtype,)):
        return reason
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 and float64, not {str(x.dtype).removeprefix('torch.')}"
    if torch.is_autocast_enabled("cpu"):
        return "it has no reduced precision for autocast"
    if torch.compiler.is_exporting():
        return "torch.export can't trace it"
    return arguments.why_not_native([x, *weights_of(cell), *others]) or _library()[1]


def scan(
    cell: Cell, x: Tensor, state: State, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, State]:
    """Run `cell` over the steps of `x`; see `rnn_cells.scan`.

    Raises:
        ValueError: sizes, types or lengths don't fit together.
    """
    check(cell, x, state)
    for name, tensor in zip(cell.state_names, state, strict=True):
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} must be of {x.dtype} like the input, got {tensor.dtype}")
    if lengths is not None:
        # A copy, for backward reads it again and the caller may have changed theirs.
        lengths = lengths.to("cpu", torch.int64, copy=True).contiguous()
        check_lengths(lengths, x)
        lengths = None if bool((lengths == len(x)).all()) else lengths
    inputs = (x, *weights_of(cell), *state)
    learning = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    output, *final = _Scan.apply(kind_of(cell), lengths, reverse, learning, *inputs)
    return output, tuple(final)


class _Problem(ctypes.Structure):
    """`struct Problem` of cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "inputs", "hidden", "reverse", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("lengths", "x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0"),
                *("out", "hn", "cn", "saved", "cells", "dout", "dhn", "dcn", "dx", "dh0", "dc0"),
                *("dgates", "dweight_ih", "dweight_hh", "dbias"),
            )
        ),
    )


def _call(function: str, kind: int, reverse: bool, lengths: Tensor, tensors: dict[str, Tensor | None]) -> None:
    x, h0 = tensors["x"], tensors["h0"]
    assert x is not None
    assert h0 is not None
    problem = _Problem(*x.shape[:2], x.shape[2], h0.shape[1], reverse, _threads(x), lengths.data_ptr())
    for name, tensor in tensors.items():
        if tensor is not None:
            assert tensor.is_contiguous()
            if not tensor.data_ptr() and tensor.numel():
                raise RuntimeError(f"{name} has no memory: it was freed, or there never was any")
            setattr(problem, name, tensor.data_ptr())
    library, _ = _library()
    if not getattr(library, function)(kind, int(x.dtype == torch.float64), ctypes.byref(problem)):
        raise MemoryError(f"{function} of {tuple(x.shape)} with hidden_size={problem.hidden}")


def _threads(x: Tensor) -> int:
    """Threads share the rows of a batch."""
    return min(torch.get_num_threads(), x.shape[1]) or 1


class _Pool:
    """Memory that nothing uses any more, kept for the next call: new memory costs a page fault every 4 KiB.

    Each tensor has a storage of its own around such memory. It comes back when the last reference to that storage is
    gone, whoever held it: autograd, a checkpoint, a hook.
    """

    LEAST = 128 << 10  # bytes; what is smaller the allocator keeps itself
    LIMIT = 512 << 20  # bytes kept

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lock = threading.RLock()  # collecting garbage inside of `take` may give some back

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """A tensor of this shape in the dtype of `like`, filled with anything."""
        size = math.prod(shape) * like.itemsize
        if size < self.LEAST:
            return like.new_empty(shape)
        with self._lock:
            fitting = [memory for memory in self._free if size <= len(memory) <= 2 * size]
            memory = min(fitting, key=len) if fitting else torch.empty(size, dtype=torch.uint8, device="cpu")
            self._free = [other for other in self._free if other is not memory]
        view = memoryview((ctypes.c_char * len(memory)).from_address(memory.data_ptr()))
        weakref.finalize(view, self._give, memory).atexit = False
        return torch.frombuffer(view, dtype=like.dtype, count=math.prod(shape)).view(shape)

    def _give(self, memory: Tensor) -> None:
        with self._lock:
            self._free.append(memory)
            while sum(map(len, self._free)) > self.LIMIT:
                del self._free[0]


_pool = _Pool()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: int, lengths: Tensor | None, reverse: bool, learning: bool, *inputs: Tensor) -> Any:
        x, weight_ih, weight_hh, bias_ih, bias_hh, *state = [
            cast("Any", None if tensor is None else dense(tensor)) for tensor in inputs
        ]
        steps, batch, _ = x.shape
        hidden = weight_hh.shape[1]
        whole = torch.full((batch,), steps, device="cpu") if lengths is None else lengths
        output = x.new_empty(steps, batch, hidden)
        final = [torch.empty_like(tensor) for tensor in state]
        lstm = kind == LSTM_KIND
        # What backward needs of each step; for the RNN that is the output itself.
        saved = _pool.take(x, steps, batch, 4 * hidden) if learning and kind != RNN_KIND else None
        cells = _pool.take(x, steps, batch, hidden) if learning and lstm else None
        tensors = {
            **{"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh},
            **{"h0": state[0], "c0": state[1] if lstm else None},
            **{"out": output, "hn": final[0], "cn": final[1] if lstm else None, "saved": saved, "cells": cells},
        }
        _call("scan_forward", kind, reverse, whole, tensors)
        if learning:
            arguments.save(ctx, x, weight_ih, weight_hh, bias_ih, bias_hh, *state, output, saved, cells)
            ctx.kind, ctx.whole, ctx.reverse = kind, whole, reverse
        return output, *final

    @staticmethod
    def backward(ctx: Any, doutput: Tensor, *dfinal: Tensor) -> Any:
        kept = arguments.saved(ctx, "cpu", (doutput, *dfinal))
        x, weight_ih, weight_hh, bias_ih, _, *state, output, saved, cells = kept
        lstm = ctx.kind == LSTM_KIND
        # Not in the place of `saved`: another backward through the same graph may read it, even at the same time.
        dgates = _pool.take(x, *output.shape) if saved is None else _pool.take(x, *saved.shape)
        dbias = x.new_empty(dgates.shape[2])
        dx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        weights: list[Any] = [torch.empty_like(weight_ih), torch.empty_like(weight_hh)]
        dstate = [torch.empty_like(tensor) for tensor in state]
        dfinal = tuple(dense(tensor) for tensor in dfinal)
        tensors = {
            **{
                "x": x,
                "weight_ih": weight_ih,
                "weight_hh": weight_hh,
                "h0": state[0],
                "c0": state[1] if lstm else None,
            },
            **{"out": output, "saved": saved, "cells": cells, "dout": dense(doutput), "dhn": dfinal[0]},
            **{"dcn": dfinal[1] if lstm else None, "dx": dx, "dh0": dstate[0], "dc0": dstate[1] if lstm else None},
            **{"dgates": dgates, "dweight_ih": weights[0], "dweight_hh": weights[1], "dbias": dbias},
        }
        _call("scan_backward", ctx.kind, ctx.reverse, ctx.whole, tensors)
        weights += [None, None] if bias_ih is None else _bias_gradients(ctx.kind, dbias)
        return None, None, None, None, dx, *weights, *dstate


def _bias_gradients(kind: int, of_blocks: Tensor) -> list[Tensor]:
    """Gradients of `bias_ih, bias_hh` from the sums over the gradients of all blocks: each in memory of its own."""
    if kind in (RNN_KIND, LSTM_KIND):
        return [of_blocks, of_blocks.clone()]
    r, z, candidate, last = of_blocks.chunk(4)
    return [torch.cat([r, z, candidate]), torch.cat([r, z, candidate if kind == GRU_KIND else last])]


# ---- the compiled library --------------------------------------------------------------------------------------------


@functools.cache
def _library() -> tuple[Any, str | None]:
    """The compiled library, or None and what is missing."""
    if sys.platform != "linux":
        return None, f"it is compiled only on Linux; this is {platform.system()}"
    from rnn_cells.backends import building  # imports what only Unix has

    try:
        library = building.load(SOURCE)
    except (OSError, building.BuildError) as error:  # no compiler, one too old, a folder from which nothing may run
        return None, str(error)
    for function in (library.scan_forward, library.scan_backward):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Problem)), ctypes.c_bool
    return library, None
