"""Our layers against `torch.nn`'s: same weights, same inputs, results compared first, then timed in turn."""

from __future__ import annotations

import logging
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_cells import BACKENDS, GRU, Recurrent, from_torch
from runs.schema import ConfigError

log = logging.getLogger(__name__)

# Of sums over a whole batch, relative to their largest entry.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "tf32": 1e-2, "bfloat16": 5e-2}
WARM_UP = 2
KINDS: dict[str, type[nn.RNNBase]] = {
    **{"lstm": nn.LSTM, "bilstm": nn.LSTM, "lstm_ragged": nn.LSTM},
    **{"gru": nn.GRU, "gru_after": nn.GRU, "gru_ragged": nn.GRU, "rnn": nn.RNN},
}
"""What each cell of the benchmark is timed against. `torch.nn` has no GRU of the source's form (`gru`)."""

SHAPES = {
    "cpu": (
        *([50, 64, 128, 128], [64, 128, 128, 128], [64, 128, 300, 256]),
        *([120, 256, 19, 128], [120, 128, 1, 64], [720, 128, 14, 64]),
    ),
    "cuda": ([128, 256, 128, 128], [128, 64, 300, 256], [120, 128, 1, 64], [720, 512, 19, 128]),
}
"""What is timed on each kind of device if nothing else is asked for: steps, batch, input_size, hidden_size."""


def defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what depends on the device: shapes, and TF32 on a GPU, as `torch.nn` has it there."""
    kind = "cuda" if settings["device"].startswith("cuda") else "cpu"
    dtype = settings["dtype"] or ("tf32" if kind == "cuda" else "float32")
    return {**settings, "shapes": settings["shapes"] or SHAPES[kind], "dtype": dtype}


def check(settings: dict[str, Any]) -> None:
    """Raise a ConfigError for what can't be timed here."""
    for shape in settings["shapes"]:
        if len(shape) != 4 or min(shape) < 1:
            raise ConfigError(f"shapes={shape} is not allowed: each has steps, batch, input_size and hidden_size")
    if settings["backend"] not in (known := ("auto", *BACKENDS)):
        raise ConfigError(f"backend={settings['backend']} is not allowed: it must be one of {', '.join(known)}")
    if settings["dtype"] in ("tf32", "bfloat16") and not settings["device"].startswith("cuda"):
        raise ConfigError(f"dtype={settings['dtype']} is for device=cuda")
    if settings["device"].partition(":")[0] not in SHAPES:
        raise ConfigError(f"device={settings['device']} is not allowed: it must be one of {', '.join(SHAPES)}")
    try:
        torch.zeros(1, device=settings["device"])
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it is there
        raise ConfigError(f"device={settings['device']}: {error}") from error


@dataclass(frozen=True)
class Case:
    """One layer of ours and its opponent, on one batch.

    Attributes:
        cell: one of `KINDS`.
        train: forward and backward, or forward alone.
        shape: steps, batch, input_size, hidden_size.
        backend, device, dtype: of the benchmark.
    """

    cell: str
    train: bool
    shape: tuple[int, int, int, int]
    backend: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"

    @cached_property
    def layers(self) -> dict[str, Any]:
        """`ours` and `torch`, holding the same weights."""
        torch.manual_seed(0)
        _, _, inputs, hidden = self.shape
        kind: Any = KINDS[self.cell]
        theirs = kind(inputs, hidden, bidirectional=self.cell == "bilstm")
        source_form = self.cell == "gru"
        ours = (
            GRU(inputs, hidden, batch_first=False, backend=self.backend)
            if source_form
            else from_torch(theirs, self.backend)
        )
        return {name: layer.to(self.device, self._parameters) for name, layer in (("ours", ours), ("torch", theirs))}

    @property
    def _parameters(self) -> torch.dtype:
        """The parameters' type."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Both sides multiply in the same precision."""
        matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.dtype == "tf32"
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.dtype == "bfloat16"):
                yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = cudnn

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor | None]:
        """Random inputs (T, B, I), and lengths like those of reviews, whose mean is 0.4 of the longest."""
        torch.manual_seed(0)
        steps, batch, inputs, _ = self.shape
        x = torch.randn(steps, batch, inputs).to(self.device, self._parameters).requires_grad_(self.train)
        if not self.cell.endswith("_ragged"):
            return x, None
        lengths = (torch.rand(batch) ** 1.5 * steps).long().clamp(1, steps)
        lengths[0] = steps
        return x, lengths

    def forward(self, side: str) -> Tensor:
        """Outputs (T, B, D*H) of `ours` or `torch`."""
        layer, (x, lengths) = self.layers[side], self.batch
        if side == "ours":
            return layer(x, lengths=lengths)[0]
        if lengths is None:
            return layer(x)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=len(x))[0]

    def seconds(self, side: str) -> float:
        """Time of one call, on a GPU between two events there."""
        with torch.set_grad_enabled(self.train), self.arithmetic():
            if not self.device.startswith("cuda"):
                started = time.perf_counter()
                self._call(side)
                return time.perf_counter() - started
            with torch.cuda.device(self.device):  # events are of the current one
                torch.cuda.synchronize()
                started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                started.record()
                self._call(side)
                ended.record()
                torch.cuda.synchronize()
            return started.elapsed_time(ended) / 1e3

    def _call(self, side: str) -> None:
        output = self.forward(side)
        if self.train:
            output.sum().backward()

    def compare(self) -> None:
        """Raise a RuntimeError unless outputs and, in training, all gradients agree.

        Numbers of `torch.nn` that aren't finite (of cuDNN's bias gradients over many steps in bfloat16) are left out,
        and a warning says so.
        """
        results = []
        for side in ("ours", "torch"):
            with self.arithmetic(), torch.set_grad_enabled(self.train):
                output = self.forward(side)
                inputs = [self.batch[0], *self.layers[side].parameters()]
                gradients = torch.autograd.grad(output.float().square().sum(), inputs) if self.train else []
            results.append([output.detach(), *gradients])
        names = ["output", "gradient of the input"]
        names += [f"gradient of {name}" for name, _ in self.layers["torch"].named_parameters()]
        for name, mine, other in zip(names, *results, strict=False):  # in use there are no gradients
            if not (finite := other.isfinite()).all():
                log.warning(f"{self.cell} {self.shape} in {self.dtype}: not all of torch.nn's {name} is finite")
                mine, other = torch.where(finite, mine, 0 * mine), torch.where(finite, other, 0)
            difference = (mine - other).abs().max() / other.abs().max().clamp(min=1)
            if not difference < TOLERANCE[self.dtype]:
                raise RuntimeError(
                    f"{self.cell} {self.shape} in {self.dtype}: {name} differs from torch.nn's by {difference:.2e}; "
                    "nothing was timed"
                )


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """The median of the ratios ours / torch.nn over alternating repeats, both medians, and each one's peak memory."""
    if case.cell != "gru":
        case.compare()
    for side in ("ours", "torch") * WARM_UP:
        case.seconds(side)
    times = [[case.seconds(side) for side in ("ours", "torch")] for _ in range(repeats)]
    ours_ms, torch_ms = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    layer: Recurrent = case.layers["ours"]
    return {
        "cell": case.cell,
        "direction": "both" if layer.bidirectional else "forward",
        **dict(zip("TBIH", case.shape, strict=True)),
        "layers": layer.num_layers,
        "lengths": "dense" if case.batch[1] is None else "ragged",
        "mode": "train" if case.train else "infer",
        "device": case.device,
        "dtype": case.dtype,
        "ours_ms": ours_ms,
        "torch_ms": torch_ms,
        "ratio": statistics.median(a / b for a, b in times),
        **{f"{side}_peak_mb": peak_memory(case, side) for side in ("ours", "torch")},
        "backend": layer.chosen_backend,
    }


def peak_memory(case: Case, side: str) -> float | None:
    """MiB that a call takes at most on top of what was there; on a CPU in a fresh process, and on Linux only."""
    if case.device.startswith("cuda"):
        case.seconds(side)
        before = torch.cuda.memory_allocated(case.device)
        torch.cuda.reset_peak_memory_stats(case.device)
        case.seconds(side)
        return (torch.cuda.max_memory_allocated(case.device) - before) / 2**20
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    fresh = Case(*(getattr(case, name) for name in ("cell", "train", "shape", "backend", "device", "dtype")))
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_of_process, fresh, side, torch.get_num_threads()).result()


def _peak_of_process(case: Case, side: str, threads: int) -> float:
    torch.set_num_threads(threads)
    Case(case.cell, case.train, (2, 2, 3, 4), case.backend).seconds(side)  # what is loaded once is not counted
    assert case.layers and case.batch[0].numel()  # noqa: PT018 - and so is what is made here
    before = _kibibytes("VmRSS")
    for _ in range(2):
        case.seconds(side)
    return (_kibibytes("VmHWM") - before) / 2**10


def _kibibytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])
