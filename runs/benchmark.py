"""Our layers against `torch.nn`'s: same weights, same inputs, results compared first, then timed in turn."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_cells import GRU, Recurrent, from_torch
from runs import figures
from runs.build import plain
from runs.report import write_json
from runs.schema import ConfigError, validate

log = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of sums over a whole batch, relative to their largest entry
WARM_UP = 2


def run(config: DictConfig) -> None:
    """Compare every layer, shape and mode; write `benchmark.json` and a figure, print a table.

    Raises:
        ConfigError: a layer isn't known.
        RuntimeError: our results differ from those of `torch.nn`.
    """
    validate(config)
    settings = plain(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    torch.set_num_threads(settings["threads"])
    cases = list(product(settings["layers"], settings["modes"], settings["shapes"]))
    rows = [measure(layer, mode, shape, settings) for layer, mode, shape in track(cases, "measuring")]
    write_json(folder / "benchmark.json", {"settings": settings, "torch": torch.__version__, "cases": rows})
    ratios = {
        f"{layer}, {mode}": [row["ratio"] for row in rows if (row["layer"], row["mode"]) == (layer, mode)]
        for layer, mode in product(settings["layers"], settings["modes"])
    }
    labels = [",".join(map(str, shape)) for shape in settings["shapes"]]
    figures.save(figures.ratios(ratios, labels), folder / "ratios")
    _print(rows, ratios, labels)
    log.info(f"benchmark.json and ratios.png are in {folder}")


def measure(layer: str, mode: str, shape: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """One case: the median of the ratios ours / theirs over alternating repeats, and both medians in milliseconds."""
    torch.manual_seed(0)
    steps, batch, inputs, hidden = shape
    device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])
    theirs, ours = _pair(layer, inputs, hidden, settings["backend"])
    theirs.to(device, dtype)
    ours.to(device, dtype)
    x = torch.randn(steps, batch, inputs, device=device, dtype=dtype, requires_grad=mode == "train")
    lengths = None
    if layer.endswith("_ragged"):  # lengths as those of reviews: mean about 0.4 of the longest
        lengths = (torch.rand(batch) ** 1.5 * steps).long().clamp(1, steps)
        lengths[0] = steps

    def of_theirs() -> Tensor:
        if lengths is None:
            return theirs(x)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(theirs(packed)[0], total_length=steps)[0]

    def of_ours() -> Tensor:
        return ours(x, lengths=lengths)[0]

    if layer != "gru":  # torch.nn has no GRU of this form; it is timed against the other one
        _compare(of_ours, of_theirs, x, ours, theirs, mode, TOLERANCE[settings["dtype"]])
    for forward in (of_ours, of_theirs) * WARM_UP:
        _time(forward, mode, device)
    times = [[_time(forward, mode, device) for forward in (of_ours, of_theirs)] for _ in range(settings["repeats"])]
    ours_ms, theirs_ms = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return {
        **{"layer": layer, "mode": mode, "T": steps, "B": batch, "I": inputs, "H": hidden},
        **{"ours_ms": ours_ms, "torch_ms": theirs_ms, "backend": ours.chosen_backend},
        "ratio": statistics.median(a / b for a, b in times),
    }


def _pair(layer: str, inputs: int, hidden: int, backend: str) -> tuple[nn.RNNBase, Recurrent]:
    kinds = {"lstm": nn.LSTM, "bilstm": nn.LSTM, "lstm_ragged": nn.LSTM, "gru_after": nn.GRU, "gru": nn.GRU}
    kinds["rnn"] = nn.RNN
    if layer not in kinds:
        raise ConfigError(f"layers={layer} is not allowed: it must be one of {', '.join(kinds)}")
    theirs = kinds[layer](inputs, hidden, bidirectional=layer == "bilstm")
    if layer == "gru":
        return theirs, GRU(inputs, hidden, batch_first=False, backend=backend)
    return theirs, from_torch(theirs, backend=backend)


def _compare(
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    x: Tensor,
    our_layer: Recurrent,
    their_layer: nn.RNNBase,
    mode: str,
    tolerance: float,
) -> None:
    """Outputs and, in training, gradients must agree before anything is timed."""
    results = []
    for forward, layer in ((ours, our_layer), (theirs, their_layer)):
        output = forward()
        gradients = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]) if mode == "train" else []
        results.append([output.detach(), *gradients])
    for mine, other in zip(*results, strict=True):
        difference = (mine - other).abs().max() / other.abs().max().clamp(min=1)
        if not difference < tolerance:
            raise RuntimeError(f"{our_layer} differs from torch.nn by {difference:.2e}; nothing was timed")


def _time(forward: Callable[[], Tensor], mode: str, device: torch.device) -> float:
    """Seconds of one call."""
    with torch.set_grad_enabled(mode == "train"):
        _synchronise(device)
        started = time.perf_counter()
        output = forward()
        if mode == "train":
            output.sum().backward()
        _synchronise(device)
        return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print(rows: list[dict[str, Any]], ratios: dict[str, list[float]], labels: list[str]) -> None:
    table = Table(title="Time of ours / time of torch.nn (below 1: ours is faster)", title_justify="left")
    table.add_column("layer, mode")
    for label in [*labels, "geometric mean"]:
        table.add_column(label, justify="right")
    for name, values in ratios.items():
        mean = math.exp(statistics.mean(map(math.log, values)))
        table.add_row(name, *(f"{value:.2f}" for value in [*values, mean]))
    Console().print(table)
    log.info(f"backend: {', '.join(sorted({row['backend'] for row in rows}))}")
