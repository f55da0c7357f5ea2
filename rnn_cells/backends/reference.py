"""The reference scan: plain PyTorch, any cell, any device. Every other backend must match it."""

from __future__ import annotations

import torch
from torch import Tensor

from rnn_cells.cells import Cell, State


def why_not(cell: Cell, x: Tensor) -> str | None:
    """What keeps this backend from running `cell` on `x`: nothing, ever."""
    return None


def scan(
    cell: Cell, x: Tensor, state: State, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, State]:
    """Run `cell` over the steps of `x`; see `rnn_cells.scan`. Shapes: x (T, B, I), states (B, H), outputs (T, B, H)."""
    if lengths is None:
        valid = None
    else:
        times = torch.arange(len(x), device=x.device)
        mask = (times[:, None] < lengths.to(x.device)).unsqueeze(-1)  # (T, B, 1)
        x = torch.where(mask, x, 0)  # also in backward: a NaN in the padding must reach neither states nor gradients
        valid = mask.unbind()
    # One product for all steps, taken apart once: indexing inside the loop would build a full-size gradient per step.
    gates = cell.project(x).unbind()
    outputs: list[Tensor] = [x] * len(gates)
    for t in reversed(range(len(gates))) if reverse else range(len(gates)):
        new = cell.recur(gates[t], state)
        if not isinstance(new, tuple):
            raise TypeError(f"{type(cell).__name__}.recur must return the new state as a tuple, such as (h,)")
        if valid is None:
            state = new
            outputs[t] = new[0]
        else:  # behind a sequence's end the state stands still and the output is zero
            state = tuple(torch.where(valid[t], after, before) for after, before in zip(new, state, strict=True))
            outputs[t] = torch.where(valid[t], new[0], 0)
    return torch.stack(outputs), state
