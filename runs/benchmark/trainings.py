"""A whole training with our layers, and the same one with `torch.nn`'s inside."""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import hydra
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_cells import Recurrent, to_torch
from runs.build import build_datamodule, build_task, plain
from tasks import Task

MODELS = {"cls": "bilstm", "forecast": "lstm"}
TRAINERS = {"cpu": "cpu", "cuda": "gpu"}
WARM_UP = 3  # batches


def measure_training(task: str, batches: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds of a training epoch of `task`, ours and with `torch.nn` inside, from `batches` of its batches.

    The two take turns, three times. `around` is the share of our time that goes to loading batches, logging and
    everything else around the training step; `per_second` counts tokens, or windows.
    """
    kind, _, number = device.partition(":")
    config = plain(hydra.compose("config", [f"task={task}", f"model={MODELS[task]}", f"trainer={TRAINERS[kind]}"]))
    config["trainer"]["devices"] = [int(number)] if number else 1
    datamodule = build_datamodule(config)
    datamodule.setup()
    loader = datamodule.train_dataloader()
    measured = min(batches, len(loader) - WARM_UP)
    items = sum(int(batch["lengths"].sum()) if "lengths" in batch else len(batch["index"]) for batch in loader)
    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    around = []
    for _ in range(3):
        for side, found in seconds.items():
            model = build_task(config, datamodule.facts)
            if side == "torch":
                network: Any = model.model
                network.encoder = TorchEncoder(network.encoder)
            whole, inside = _train(model, datamodule, config, measured)
            found.append(whole * len(loader) / measured)
            around += [1 - inside / whole] if side == "ours" else []
    ours, theirs = (statistics.median(found) for found in seconds.values())
    return {
        **{"task": task, "model": MODELS[task], "data": datamodule.name, "batches": len(loader), "measured": measured},
        **{"precision": config["trainer"]["precision"], "ours_s": ours, "torch_s": theirs},
        "ratio": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "per_second": items / ours,
        "unit": "tokens" if task == "cls" else "windows",
        "around": statistics.median(around),
    }


class TorchEncoder(nn.Module):
    """`torch.nn`'s layer in the place of one of ours."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer = to_torch(layer)
        self.output_size = layer.output_size

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """As `Recurrent.forward`, batch first."""
        if lengths is None:
            return self.layer(x)
        packed = pack_padded_sequence(x, lengths.cpu().clamp(min=1), batch_first=True, enforce_sorted=False)
        outputs, state = self.layer(packed)
        return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], state


def _train(model: Task, datamodule: Any, config: dict[str, Any], batches: int) -> tuple[float, float]:
    """Seconds of so many batches of a training as it is in a run, and those of them inside the training step."""
    with tempfile.TemporaryDirectory() as folder:
        profiler = SimpleProfiler()
        trainer = pl.Trainer(
            accelerator=config["trainer"]["accelerator"],
            devices=config["trainer"]["devices"],
            precision=config["trainer"]["precision"],
            max_epochs=1,
            limit_train_batches=WARM_UP + batches,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            gradient_clip_val=config["trainer"]["gradient_clip_val"],
            log_every_n_steps=config["trainer"]["log_every_n_steps"],
            logger=TensorBoardLogger(folder),
            profiler=profiler,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(model, train_dataloaders=datamodule.train_dataloader())
    recorded = profiler.recorded_durations
    steps, loading = recorded["run_training_batch"], recorded["[_TrainingEpochLoop].train_dataloader_next"]
    return recorded["run_training_epoch"][0] - sum(steps[:WARM_UP] + loading[:WARM_UP]), sum(steps[WARM_UP:])
