"""What native code and kernels must know before they trust a pointer."""

from __future__ import annotations

from torch import Tensor

from rnn_cells.cells import Cell, State


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
    """See that there is an integer for each sequence and, unless they are on a GPU, that it is no more than the steps.

    Raises:
        ValueError: it isn't so.
    """
    steps, batch, _ = x.shape
    fitting = lengths.shape == (batch,) and not lengths.dtype.is_floating_point
    if fitting and batch and lengths.device.type == "cpu":  # elsewhere, looking at them would wait for them
        fitting = 0 <= int(lengths.min()) <= int(lengths.max()) <= steps
    if not fitting:
        raise ValueError(f"lengths must be {batch} integers between 0 and {steps}, got {lengths.tolist()}")
