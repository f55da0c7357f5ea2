"""Which implementation of the scan runs: `reference` is the truth, the others are faster and must match it.

A backend is a module with `scan` (the reference's signature) and `why_not(cell, x, *others)`, a predicate that names
what keeps it from running there, or None; `others` are the initial state and the lengths, as far as given. It may have a `scan_layer` of its own, which runs both directions at once. Choosing
never tries and catches: an eligible backend that fails is a bug to be seen.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from rnn_cells.backends import cpu, reference, triton
from rnn_cells.cells import Cell, State

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {"triton": triton, "cpu": cpu, "reference": reference}
"""The backends by name, fastest first."""


def choose(name: str, cells: Sequence[Cell], x: Tensor, *others: Tensor) -> ModuleType:
    """The backend `name`, or for `auto` the fastest that can run all `cells`, which are of one kind, on `x`.

    `others` are the initial state and the lengths.

    Raises:
        ValueError: there is no such backend, or it can't run here (the message says why).
    """
    kind = type(cells[0]).__name__
    if name == "auto":
        faster: list[str] = []
        for each, backend in BACKENDS.items():
            if (reason := _why_not(backend, cells, x, *others)) is None:
                _announce("; ".join([f"backend auto runs {kind} on {each}", *faster]))
                return backend
            faster.append(f"not {each}: {reason}")
    check_name(name)
    if reason := _why_not(BACKENDS[name], cells, x, *others):
        raise ValueError(f"backend {name!r} can't run {kind} here: {reason}")
    return BACKENDS[name]


def _why_not(backend: ModuleType, cells: Sequence[Cell], x: Tensor, *others: Tensor) -> str | None:
    return next(filter(None, (backend.why_not(cell, x, *others) for cell in cells)), None)


def scan_layer(
    backend: ModuleType, cells: Sequence[Cell], x: Tensor, state: State | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Run the cells of one layer over `x`, the second one backwards.

    Args:
        backend: one of `BACKENDS`.
        cells: D of them, one per direction.
        x: (T, B, I).
        state: tensors (D, B, H); the cells' own if not given.
        lengths: as for `rnn_cells.scan`.

    Returns:
        Outputs (T, B, D*H) and the final state, laid out as `state`.
    """
    if hasattr(backend, "scan_layer"):
        return backend.scan_layer(cells, x, state, lengths)
    if state is None:
        states = [cell.initial_state(x.shape[1]) for cell in cells]
    else:
        states = zip(*(tensor.unbind() for tensor in state), strict=True)
    pairs = enumerate(zip(cells, states, strict=True))
    results = [backend.scan(cell, x, each, lengths, direction == 1) for direction, (cell, each) in pairs]
    outputs, finals = zip(*results, strict=True)
    final = tuple(torch.stack(tensors) for tensors in zip(*finals, strict=True))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1), final


def reasons(cells: Sequence[Cell], x: Tensor) -> dict[str, str | None]:
    """What keeps each backend, fastest first, from running `cells` on `x`; None: nothing."""
    return {name: _why_not(backend, cells, x) for name, backend in BACKENDS.items()}


def name_of(backend: ModuleType) -> str:
    """The name under which a backend is chosen."""
    return next(name for name, module in BACKENDS.items() if module is backend)


def check_name(name: str) -> None:
    """Raise a ValueError unless there is a backend `name`."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {name!r}")


@functools.cache  # says each thing once
def _announce(message: str) -> None:
    log.info(message)
