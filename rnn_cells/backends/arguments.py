"""Checks before native code and kernels read the raw memory of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._device import DeviceContext

from rnn_cells.cells import Cell, GRUCell, LSTMCell, RNNCell, State

RNN_KIND, LSTM_KIND, GRU_KIND, GRU_AFTER_KIND = range(4)  # as in cpu.cpp and kernels.py


def kind_of(cell: Cell) -> Any:
    """Which of the known equations a cell has; None for one of its own."""
    # The exact types: a subclass may have equations of its own, and so may a cell one of whose methods was replaced.
    if any(name in cell.__dict__ for name in ("recur", "project", "step")):
        return None
    if type(cell) is GRUCell:
        return GRU_AFTER_KIND if cell.reset_after else GRU_KIND
    return {RNNCell: RNN_KIND, LSTMCell: LSTM_KIND}.get(type(cell))


def has_hooks(module: nn.Module) -> bool:
    """Whether something wants to see each call of `module`: what prunes or normalises its weights, for instance."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in module.__dict__


def why_not(cell: Cell, x: Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why native code can't run `cell`, with weights of one of `dtypes`, on `x`; None if it can."""
    if kind_of(cell) is None:
        return f"it knows RNNCell, GRUCell and LSTMCell, not {type(cell).__name__}"
    if has_hooks(cell):
        return f"the {type(cell).__name__} has hooks, which must run at each step"
    rows = cell.num_gates * cell.hidden_size
    shapes = {"weight_ih": (rows, cell.input_size), "weight_hh": (rows, cell.hidden_size)}
    if cell.bias_ih is not None or cell.bias_hh is not None:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    for name, shape in shapes.items():  # somebody may have put another one in its place
        tensor = getattr(cell, name)
        if tensor is None or tensor.shape != shape:
            return f"{name} must be {shape}, got {None if tensor is None else tuple(tensor.shape)}"
        if tensor.device != x.device or tensor.dtype not in dtypes:
            return f"the input is {x.dtype} on {x.device}, the weights are {tensor.dtype} on {tensor.device}"
    return None


def weights_of(cell: Cell) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The tensors of the equations."""
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def why_not_native(tensors: Iterable[Tensor | None]) -> str | None:
    """Why native code can't read these tensors: no plain memory, or torch's operations are recorded; None if it can.

    Tracing and transforms, which see single operations, would silently miss what native code does.
    """
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace and torch.onnx.export can't trace it"
    inside = torch._C._are_functorch_transforms_active()
    if inside or forward_ad._current_level >= 0:
        return "it has no forward derivatives, and torch.func can't transform it"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode can't record it"
    for mode in _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ():
        if not isinstance(mode, DeviceContext):  # torch.set_default_device: it only places what is made from nothing
            return f"{type(mode).__name__} can't record it"
    for tensor in tensors:
        if tensor is not None and not _is_plain(tensor):
            return f"it reads plain dense tensors, not {type(tensor).__name__} of layout {tensor.layout}"
    return None


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing more than strided memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_nested:
        return False
    if torch.compiler.is_dynamo_compiling():  # which can't follow the rest, and leaves the scan out of its graph
        return True
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    functional = torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage]
    return not (wrapped or functional or any(getattr(tensor, "names", ())))  # torch 2.13 has no names


def dense(tensor: Tensor) -> Tensor:
    """The tensor as native code reads it: contiguous, no negation pending; without a copy if it is so already."""
    return tensor.detach().resolve_neg().contiguous()


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for `saved`: where autograd's hooks see them, so that a checkpoint can free them."""
    ctx.save_for_backward(*tensors)
    ctx.layouts = [_layout(tensor) for tensor in tensors]


def saved(ctx: Any, backend: str, gradients: Iterable[Tensor | None]) -> list[Any]:
    """What `save` was given, as native code reads it, for a backward of these gradients.

    Raises:
        RuntimeError: native code can't run it, or a hook hasn't given back what it got.
    """
    remedy = "use backend='reference'"
    if torch.is_grad_enabled():  # create_graph: what comes out of native code would count as constant
        raise RuntimeError(f"the {backend} backend has no second derivatives: {remedy}")
    tensors = ctx.saved_tensors
    if reason := why_not_native([*gradients, *tensors]):
        raise RuntimeError(f"the {backend} backend can't run this backward: {reason}; {remedy}")
    if [_layout(tensor) for tensor in tensors] != ctx.layouts:
        raise RuntimeError("a hook for saved tensors must give back what it got: shape, type and device differ")
    return [None if tensor is None else dense(tensor) for tensor in tensors]


def _layout(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device; None where it is off."""
    enabled = device != "meta" and torch.is_autocast_enabled(device)  # there is none on `meta`
    return torch.get_autocast_dtype(device) if enabled else None


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
    """Check that each sequence of `x` (T, B, I) has an integer and, if it is on the CPU, that it is from 0 to T.

    On a GPU, reading lengths would make every call wait; while operations are recorded, they have no values.

    Raises:
        ValueError: it isn't so.
    """
    steps, batch, _ = x.shape
    dtype = lengths.dtype
    if lengths.shape != (batch,) or dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"lengths must be {batch} integers, got {dtype} of {tuple(lengths.shape)}")
    if lengths.device.type != "cpu" or not batch or why_not_native([lengths]):
        return
    values = lengths.tolist()
    if not 0 <= min(values) <= max(values) <= steps:
        raise ValueError(f"lengths must lie between 0 and {steps}, got {values}")
