"""How far back a trained network remembers: what its state of so many steps ago still does to its output.

Legend: B sequences, T steps, H hidden_size.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks import Baseline, Task

log = logging.getLogger(__name__)

SEQUENCES = 8
"""Over which a run's own curve is averaged."""
PRODUCTS = 1e10
"""Multiply-adds, about a second's, that a run's own curve may cost; large networks have it from fewer sequences."""
NOTHING = 1e-12
"""A norm below this is the last one that is computed: those of longer lags stand as 0."""
State = tuple[Tensor, ...]


def memory_curve(task: Task, batch: dict[str, Tensor]) -> dict[str, Any] | None:
    """How much the last output of the top recurrent layer depends on that layer's state, by the steps between.

    With s_t the state behind step t (h_t; of an LSTM h_t and c_t side by side), h_T the output of the last step, and
    the layer's inputs as they are:

        J_k = dh_T / ds_{T-k} = dh_T/ds_T A_T A_{T-1} … A_{T-k+1},    A_t = ds_t / ds_{t-1}
        norm_k = mean over the sequences of |J_k|_F / sqrt(H),        k = 0 … T-1

    so norm_k is the root mean square of the singular values of J_k, and norm_0 is 1. It is computed exactly, by the
    vector-Jacobian products of `cell.recur` for all H outputs. Below 1 it fades as the gradient of a loss at the last
    step does on its way back in time (Pascanu et al. 2013). The backward direction ends at the first step.

    Args:
        task: trained, of a network around cells; is put into evaluation mode.
        batch: real inputs; all sequences are cut to the length of the shortest.

    Returns:
        `lags` (0 … T-1), `norm` with a list for `forwards` and, of both directions, `backwards`, and the number of
        `sequences`. None for a model without cells, or sequences without a step.
    """
    encoder: Any = None if isinstance(task.model, Baseline) else task.model.encoder
    lengths = batch.get("lengths")
    steps = batch["inputs"].shape[1] if lengths is None else int(lengths.min())
    if not hasattr(encoder, "cells") or steps == 0:
        return None
    task.eval()
    with torch.no_grad():
        weight = next(encoder.parameters())
        inputs = batch["inputs"][:, :steps].to(weight.device)
        x = task.model.inputs(inputs.to(weight.dtype) if inputs.is_floating_point() else inputs)  # pyright: ignore
        sequence = x.transpose(0, 1)  # (T, B, I)
        for layer in range(encoder.num_layers):
            cells = encoder.cells[layer * encoder.directions :][: encoder.directions]
            passes = [_read(cell, sequence.flip(0) if number else sequence) for number, cell in enumerate(cells)]
            outputs = [torch.stack([state[0] for state in states[1:]]) for _, states in passes]
            sequence = torch.cat([each.flip(0) if number else each for number, each in enumerate(outputs)], dim=-1)
    names = ("forwards", "backwards")[: encoder.directions]
    norms = [_norms(cell, *each) for cell, each in zip(cells, passes, strict=True)]
    return {"lags": [*range(steps)], "norm": dict(zip(names, norms, strict=True)), "sequences": len(inputs)}


def _read(cell: Any, sequence: Tensor) -> tuple[Tensor, list[State]]:
    """The projected inputs (T, B, …) and the states before, between and behind all steps."""
    gates = cell.project(sequence)
    states = [cell.initial_state(sequence.shape[1])]
    for step in gates:
        states.append(cell.recur(step, states[-1]))
    return gates, states


def _norms(cell: Any, gates: Tensor, states: list[State]) -> list[float]:
    size = states[0][0].shape[-1]
    outputs = torch.eye(size, device=gates.device, dtype=gates.dtype)[:, None].expand(-1, gates.shape[1], -1)
    # Of each state's tensor (H, B, H): the outputs, the sequences, what they are derived by.
    jacobian = (outputs, *(torch.zeros_like(outputs) for _ in states[0][1:]))
    norms = [0.0] * len(gates)
    for lag in range(len(gates)):
        if lag:
            step, before = gates[-lag], states[-lag - 1]
            pull: Any = torch.func.vjp(lambda *state, step=step: cell.recur(step, state), *before)[1]
            jacobian = torch.func.vmap(pull)(jacobian)
        norms[lag] = _norm(jacobian)
        if norms[lag] < NOTHING:
            break
    return norms


def _norm(jacobian: State) -> float:
    squares = sum(torch.linalg.vector_norm(part, dim=(0, 2), dtype=torch.float64).square() for part in jacobian)
    return (torch.as_tensor(squares) / len(jacobian[0])).sqrt().mean().item()


def lag_below(norms: list[float], share: float) -> int | None:
    """The first lag at which the norm has fallen below a share of that at lag 0; None if it never does."""
    return next((lag for lag, norm in enumerate(norms) if norm < share * norms[0]), None)


def examples(dataset: Any, count: int) -> dict[str, Tensor]:
    """A batch of `count` examples of a split: of texts the longest, of windows some spread over the split."""
    lengths = getattr(dataset, "lengths", None)
    if lengths is None:
        positions = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    else:
        positions = np.argsort(lengths, kind="stable")[-count:]
    return dataset[positions.tolist()]


def memory_of_run(task: Task, dataset: Any) -> dict[str, Any] | None:
    """The `memory_curve` that a run keeps: of as many sequences, up to `SEQUENCES`, as take about a second."""
    cells = getattr(getattr(task.model, "encoder", None), "cells", None)
    if cells is None:
        return None
    batch = examples(dataset, SEQUENCES)
    cost = batch["inputs"].shape[1] * sum(cell.hidden_size * cell.weight_hh.numel() for cell in cells)
    affordable = max(1, min(SEQUENCES, math.floor(PRODUCTS / cost)))
    try:
        return memory_curve(task, {name: values[-affordable:] for name, values in batch.items()})
    except Exception as error:  # whatever a cell of the user's own can't do: its training is not to be lost for it
        log.warning("how far back the network remembers can't be computed: %s", error)
        return None
