"""What native code and kernels must know before they trust a pointer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.parametrize import is_parametrized

from rnn_cells.cells import Cell, GRUCell, LSTMCell, RNNCell, State

RNN_KIND, LSTM_KIND, GRU_KIND, GRU_AFTER_KIND = range(4)  # as in cpu.cpp and kernels.py


def kind_of(cell: Cell) -> Any:
    """Which of the known equations a cell has; None for one of its own."""
    # The exact types: a subclass may have equations of its own.
    if type(cell) is GRUCell:
        return GRU_AFTER_KIND if cell.reset_after else GRU_KIND
    return {RNNCell: RNN_KIND, LSTMCell: LSTM_KIND}.get(type(cell))


def why_not(cell: Cell, x: Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """What keeps native code from running `cell` on `x`, whose weights it wants in one of these types."""
    if kind_of(cell) is None:
        return f"it knows RNNCell, GRUCell and LSTMCell, not {type(cell).__name__}"
    rows = cell.num_gates * cell.hidden_size
    shapes = {"weight_ih": (rows, cell.input_size), "weight_hh": (rows, cell.hidden_size)}
    if cell.bias_ih is not None or cell.bias_hh is not None:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    for name, shape in shapes.items():  # somebody may have put another one in its place
        if name != "weight_hh" and is_parametrized(cell, name):  # each look computes it anew
            continue
        tensor = getattr(cell, name)
        if tensor is None or tensor.shape != shape:
            return f"{name} must be {shape}, got {None if tensor is None else tuple(tensor.shape)}"
        if tensor.device != x.device or tensor.dtype not in dtypes:
            return f"the input is {x.dtype} on {x.device}, the weights are {tensor.dtype} on {tensor.device}"
    inside = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    if inside or forward_ad._current_level >= 0:
        return "it has no forward derivatives, and torch.func can't look into it"
    return None


def check(cell: Cell, x: Tensor, state: State | None, directions: tuple[int, ...] = ()) -> None:
    """See that sizes and devices fit together; with `directions` (D,) a tensor of the state is (D, B, H).

    Raises:
        ValueError: they don't.
    """
    steps, batch, inputs = x.shape
    if inputs != cell.input_size or steps == 0:
        raise ValueError(f"input must be (T, B, {cell.input_size}) with at least one step, got {tuple(x.shape)}")
    if state is None:
        return
    shape = (*directions, batch, cell.hidden_size)
    for name, tensor in zip(cell.state_names, state, strict=True):
        if tensor.shape != shape or tensor.device != x.device:
            expected = f"{shape} on {x.device}"
            raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)} on {tensor.device}")


def check_lengths(lengths: Tensor, x: Tensor) -> None:
    """See that each sequence of `x` (T, B, I) has an integer and, on the CPU, that it is no more than there are steps.

    Elsewhere, looking at them would make every call wait for them.

    Raises:
        ValueError: it isn't so.
    """
    steps, batch, _ = x.shape
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be {batch} integers, got {lengths.dtype} of {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise ValueError(f"lengths must lie between 0 and {steps}, got {lengths.tolist()}")
