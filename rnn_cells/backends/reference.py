"""The reference scan: plain PyTorch, any cell, any device. Every other backend must match it."""

from __future__ import annotations

import torch
from torch import Tensor

from rnn_cells.backends.arguments import has_hooks, kind_of
from rnn_cells.cells import Cell, State


def why_not(cell: Cell, x: Tensor, *others: Tensor) -> str | None:
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
        mask = (times[:, None] < lengths.to(x.device, torch.int64)).unsqueeze(-1)  # (T, B, 1)
        x = torch.where(mask, x, 0)  # also in backward: a NaN in the padding must reach neither states nor gradients
        valid = mask.unbind()
    # A cell that is watched is called step by step. For others one product for all steps, taken apart once: indexing
    # inside the loop would build a full-size gradient per step.
    watched = has_hooks(cell)
    steps = (x if watched else cell.project(x)).unbind()
    changes = watched or kind_of(cell) is None  # a cell of one's own may change in place what it is given
    outputs: list[Tensor] = [x] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        given, past = steps[t], state
        if changes:
            given, past = given.clone(), tuple(tensor.clone() for tensor in past)
        output, new = cell(given, past) if watched else cell.step(given, past)
        if valid is None and changes:  # what it returns may be memory that it changes later
            output, new = output.clone(), tuple(tensor.clone() for tensor in new)
        if valid is None:
            state = new
            outputs[t] = output
        else:  # past a sequence's end the state stands still and the output is zero
            state = tuple(torch.where(valid[t], after, before) for after, before in zip(new, state, strict=True))
            outputs[t] = torch.where(valid[t], output, 0)
    return torch.stack(outputs), state
