"""Which implementation of the scan runs: `reference` is the truth, the others are faster and must match it.

A backend is a module with `scan` (the reference's signature) and `why_not(cell, x)`, a predicate that names what keeps
it from running there, or None; it may have `scan_both`, which runs two cells in opposite directions at once. Choosing
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


def choose(name: str, cell: Cell, x: Tensor) -> ModuleType:
    """The backend `name`, or for `auto` the fastest that can run `cell` on `x`.

    Raises:
        ValueError: there is no such backend, or it can't run here (the message says why).
    """
    if name == "auto":
        faster: list[str] = []
        for each, backend in BACKENDS.items():
            if (reason := backend.why_not(cell, x)) is None:
                _announce("; ".join([f"backend auto runs {type(cell).__name__} on {each}", *faster]))
                return backend
            faster.append(f"not {each}: {reason}")
    check_name(name)
    if reason := BACKENDS[name].why_not(cell, x):
        raise ValueError(f"backend {name!r} can't run {type(cell).__name__} here: {reason}")
    return BACKENDS[name]


def scan_layer(
    backend: ModuleType, cells: Sequence[Cell], x: Tensor, states: Sequence[State], lengths: Tensor | None
) -> tuple[Tensor, list[State]]:
    """Run the cells of one layer over `x`, the second one backwards: outputs (T, B, D*H) and the final states."""
    if len(cells) == 2 and hasattr(backend, "scan_both"):
        return backend.scan_both(cells, x, states, lengths)
    pairs = enumerate(zip(cells, states, strict=True))
    results = [backend.scan(cell, x, state, lengths, direction == 1) for direction, (cell, state) in pairs]
    outputs, finals = zip(*results, strict=True)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1), list(finals)


def reasons(cell: Cell, x: Tensor) -> dict[str, str | None]:
    """What keeps each backend, fastest first, from running `cell` on `x`; None: nothing."""
    return {name: backend.why_not(cell, x) for name, backend in BACKENDS.items()}


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
