"""Text classification: which of the fixed classes a sequence of tokens belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from tasks.models import SequenceModel
from tasks.task import Batch, Task


class ClassificationTask(Task):
    """Cross-entropy over fixed classes; accuracy, precision, recall and F1.

    A score's macro average is the mean over all classes of the data set, also over those that a split happens not to
    hold (their score is then 0, and their support of 0 shows why).

    Args:
        facts: of the data: `classes` (names), `vocab_size`, `padding_index`.
        inputs: builds the embedding from `vocab_size` and `padding_index`.
        encoder: builds the recurrent encoder from `input_size`.
        pooling: how steps become one vector; see `Pooling`.
        dropout: on that vector.
        label_smoothing: share of a target's probability spread over all classes (Szegedy et al. 2016).
        task_options: of `Task`.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        inputs: Callable[..., nn.Module],
        encoder: Callable[..., nn.Module],
        pooling: str = "max",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        **task_options: Any,
    ) -> None:
        classes = [str(name) for name in facts["classes"]]
        embedding = inputs(vocab_size=facts["vocab_size"], padding_index=facts["padding_index"])
        network = SequenceModel(embedding, encoder(input_size=embedding.output_size), len(classes), pooling, dropout)
        super().__init__(network, **task_options)
        self.classes, self.label_smoothing = classes, label_smoothing
        per_class: dict[str, Any] = {"num_classes": len(classes), "average": "none"}
        scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(len(classes), average="micro"),
                "precision": MulticlassPrecision(**per_class),
                "recall": MulticlassRecall(**per_class),
                "f1": MulticlassF1Score(**per_class),
            }
        )
        self.val_scores, self.test_scores = scores.clone(), scores.clone()
        self.confusion = MulticlassConfusionMatrix(len(classes))
        self.kept: Any = nn.ModuleDict({name: CatMetric() for name in ("index", "targets", "probabilities")})

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and the class logits (B, classes)."""
        logits = self.model(batch["inputs"], batch["lengths"])
        return cross_entropy(logits, batch["targets"], label_smoothing=self.label_smoothing), logits

    def update_validation(self, outputs: Tensor, batch: Batch) -> None:
        self.val_scores.update(outputs, batch["targets"])

    def validation_scores(self) -> dict[str, Tensor]:
        scores = {name: value.mean() for name, value in self.val_scores.compute().items()}
        self.val_scores.reset()
        return {name: scores[name] for name in ("accuracy", "f1")}

    def update_test(self, outputs: Tensor, batch: Batch) -> None:
        self.test_scores.update(outputs, batch["targets"])
        self.confusion.update(outputs, batch["targets"])
        for name, value in (
            ("index", batch["index"]),
            ("targets", batch["targets"]),
            ("probabilities", outputs.softmax(dim=-1)),
        ):
            self.kept[name].update(value)

    def finish_test(self) -> None:
        computed = self.test_scores.compute()
        confusion = self.confusion.compute()  # rows: truth, columns: prediction
        support = confusion.sum(dim=1)
        self.scores = {"accuracy": computed["accuracy"].item()}
        for name in ("precision", "recall", "f1"):
            self.scores[f"{name}_macro"] = computed[name].mean().item()
            self.scores[f"{name}_weighted"] = (computed[name] * support / support.sum()).sum().item()
        self.details = {
            "per_class": [
                {
                    "class": label,
                    **{name: computed[name][number].item() for name in ("precision", "recall", "f1")},
                    "support": int(support[number]),
                }
                for number, label in enumerate(self.classes)
            ],
            "confusion": confusion.tolist(),
        }
        self._predicted = {name: metric.compute().cpu() for name, metric in self.kept.items()}
        for metric in (self.test_scores, self.confusion, *self.kept.values()):
            metric.reset()

    def predictions(self) -> pd.DataFrame:
        """Columns `index, target, prediction, probability` and `p(class)` for every class."""
        probabilities = self._predicted["probabilities"]
        names = pd.Index(self.classes)
        best = probabilities.max(dim=-1)
        frame = pd.DataFrame(
            {
                "index": self._predicted["index"].long().numpy(),
                "target": names[self._predicted["targets"].long().numpy()],
                "prediction": names[best.indices.numpy()],
                "probability": best.values.numpy(),
            }
        )
        each = pd.DataFrame(probabilities.numpy(), columns=[f"p({label})" for label in self.classes])
        return pd.concat([frame, each], axis=1)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities (B, classes)."""
        return self.model(batch["inputs"], batch["lengths"]).softmax(dim=-1)
