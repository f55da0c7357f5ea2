"""Text classification: which of the fixed classes a sequence of tokens belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasks.baselines import Baseline
from tasks.models import build_model
from tasks.ngrams import NgramVotes
from tasks.task import Batch, Kept, Task


class ClassificationTask(Task):
    """Cross-entropy over fixed classes; accuracy, precision, recall and F1.

    Probabilities are softmax(logits / temperature) with the one temperature under which the validation split's
    cross-entropy is least (Guo et al. 2017). `ece` is the expected calibration error, the mean distance between
    confidence and accuracy in 15 bins of confidence; `accuracy_at_90` is the accuracy on the nine tenths of the
    examples about which the model is most confident.

    A score's macro average is the mean over all classes of the data set, also over those that a split happens not to
    hold (their score is then 0, and their support of 0 shows why).

    Args:
        facts: of the data: `classes` (names), `vocab_size`, `padding_index`, `unknown_index`.
        inputs: builds the embedding from `vocab_size`, `padding_index` and `unknown_index`.
        encoder: builds the encoder from `input_size`.
        baseline: builds a `Baseline` from `facts`, in the place of both; the options of the network are then not used.
        pooling: how steps become one vector; see `Pooling`.
        dropout: on that vector.
        label_smoothing: share of a target's probability spread over all classes, in training (Szegedy et al. 2016).
        consistency: weight of the `divergence` of two answers to a training text under different dropout; the
            cross-entropy is then the mean of both (R-Drop: Liang et al. 2021). The paper's alpha is twice this weight,
            for it sums the cross-entropies. Doubles the time of a step.
        ngrams: options of `NgramVotes`, which are added to the logits if there are any n-grams.
        members: M, networks whose logits are averaged, each with votes of its own.
        task_options: of `Task`.

    Raises:
        ValueError: `consistency` without any dropout.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        inputs: Callable[..., nn.Module] | None = None,
        encoder: Callable[..., nn.Module] | None = None,
        baseline: Callable[..., Baseline] | None = None,
        pooling: str = "max",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        consistency: float = 0.0,
        ngrams: Mapping[str, Any] | None = None,
        members: int = 1,
        **task_options: Any,
    ) -> None:
        classes = [str(name) for name in facts["classes"]]
        if baseline is not None:
            models: list[nn.Module] = [baseline(facts=facts)]
        else:
            tokens = {name: facts[name] for name in ("vocab_size", "padding_index", "unknown_index")}
            models = [build_model(inputs, encoder, len(classes), pooling, dropout, **tokens) for _ in range(members)]
        super().__init__(models[0], others=models[1:], **task_options)
        self.classes, self.label_smoothing, self.consistency = classes, label_smoothing, consistency
        votes: list[NgramVotes] = []
        if baseline is None and ngrams is not None and ngrams["characters"] + ngrams["words"] > 0:
            votes = [NgramVotes(len(classes), **ngrams) for _ in models]
        self.votes, self.other_votes = votes[0] if votes else None, nn.ModuleList(votes[1:])
        if baseline is None and consistency and not _drops(self):
            raise ValueError(
                "task.consistency compares answers under different dropout, and there is none that differs from row to "
                "row: set task.dropout, task.inputs.dropout, task.inputs.token_dropout or task.ngrams.dropout, or "
                "task.consistency=0"
            )
        self.val_scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(len(classes), average="micro"),
                "f1": MulticlassF1Score(len(classes), average="none"),
            }
        )
        self.val_confusion = MulticlassConfusionMatrix(len(classes))
        names = ("index", "targets", "probabilities", "uncalibrated")
        self.kept: Any = nn.ModuleDict({name: Kept() for name in names})
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def logits(self, batch: Batch) -> Tensor:
        """Class logits (B, classes)."""
        return self.logits_of_members(batch).mean(dim=0)

    def logits_of_members(self, batch: Batch) -> Tensor:
        """Class logits of each network, or of the one baseline (M, B, classes)."""
        if isinstance(self.model, Baseline):
            return self.model(batch)[None]
        logits = self.of_members(batch["inputs"], batch["lengths"])
        if self.votes is None:
            return logits
        found = self.votes.find(batch["characters"], batch["inputs"])
        return logits + torch.stack([votes(found) for votes in (self.votes, *self.other_votes)])

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, in training of each member and with `consistency`, and the logits (B, classes)."""

        def entropy(logits: Tensor) -> Tensor:
            targets = batch["targets"].repeat(len(logits))
            smoothing = self.label_smoothing if self.training else 0.0
            return cross_entropy(logits.flatten(0, 1), targets, label_smoothing=smoothing)

        if not self.training:
            logits = self.logits(batch)
            return entropy(logits[None]), logits
        if not self.consistency:
            each = self.logits_of_members(batch)
            return entropy(each), each.mean(dim=0)
        # Both answers in one pass: every row has a dropout of its own (but for that inside the recurrence).
        twice = {name: torch.cat([value, value]) for name, value in batch.items()}
        each, again = self.logits_of_members(twice).chunk(2, dim=1)
        apart = divergence(each.flatten(0, 1), again.flatten(0, 1))
        return (entropy(each) + entropy(again)) / 2 + self.consistency * apart, each.mean(dim=0)

    def update_validation(self, outputs: Tensor, batch: Batch) -> None:
        self.val_scores.update(outputs, batch["targets"])
        self.val_confusion.update(outputs, batch["targets"])

    def validation_scores(self) -> dict[str, Tensor]:
        scores = {name: value.mean() for name, value in self.val_scores.compute().items()}
        self.val_scores.reset()
        self.validation_details = {"confusion": self.val_confusion.compute().tolist()}
        self.val_confusion.reset()
        return {name: scores[name] for name in ("accuracy", "f1")}

    @property
    def calibrates(self) -> bool:
        return True

    def calibrate(self, outputs: Tensor, targets: Tensor) -> None:
        self.temperature.fill_(best_temperature(outputs.double(), targets.long()))

    def update_test(self, outputs: Tensor, batch: Batch) -> None:
        probabilities = (outputs / self.temperature).softmax(dim=-1)
        kept = {
            "index": batch["index"],
            "targets": batch["targets"],
            "probabilities": probabilities,
            "uncalibrated": outputs.softmax(dim=-1).amax(dim=-1),  # of the answer
        }
        for name, value in kept.items():
            self.kept[name].update(value)

    def finish_test(self) -> None:
        self._predicted = {name: metric.compute().cpu() for name, metric in self.kept.items()}
        for metric in self.kept.values():
            metric.reset()
        targets = self._predicted["targets"].long()
        confidence, answers = self._predicted["probabilities"].max(dim=1)
        right = (answers == targets).double()
        confusion = multiclass_confusion_matrix(answers, targets, len(self.classes))  # rows: truth, columns: prediction
        hits, support, answered = confusion.diag().double(), confusion.sum(dim=1), confusion.sum(dim=0)
        of_classes = {  # 0 where there is nothing to divide by
            "precision": hits / answered.clamp(min=1),
            "recall": hits / support.clamp(min=1),
            "f1": 2 * hits / (support + answered).clamp(min=1),
        }
        self.scores = {"accuracy": right.mean().item()}
        for name, values in of_classes.items():
            self.scores[f"{name}_macro"] = values.mean().item()
            self.scores[f"{name}_weighted"] = (values * support / support.sum()).sum().item()
        self.scores["ece"] = calibration_error(confidence, right)
        sure = confidence.argsort(descending=True, stable=True)[: math.ceil(0.9 * len(targets))]
        self.scores["accuracy_at_90"] = right[sure].mean().item()
        self.details = {
            "temperature": self.temperature.item(),
            "ece_uncalibrated": calibration_error(self._predicted["uncalibrated"], right),
            "per_class": [
                {
                    "class": label,
                    **{name: values[number].item() for name, values in of_classes.items()},
                    "support": int(support[number]),
                }
                for number, label in enumerate(self.classes)
            ],
            "confusion": confusion.tolist(),
        }

    def predictions(self) -> pd.DataFrame:
        """Columns `index, target, prediction, probability` and `p(class)` for every class, by `index`."""
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
        return pd.concat([frame, each], axis=1).sort_values("index", ignore_index=True)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities (B, classes)."""
        return (self.logits(batch) / self.temperature).softmax(dim=-1)


def _drops(task: nn.Module) -> bool:
    """Whether any part of a network drops something in training."""
    names = ("p", "dropout", "token_dropout")  # p: of torch.nn.Dropout
    # A single recurrent layer has no dropout between layers, whatever it is set to.
    modules = [module for module in task.modules() if getattr(module, "num_layers", 2) > 1]
    values = [getattr(module, name, 0) for module in modules for name in names]
    return any(isinstance(value, float | int) and value > 0 for value in values)


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """The mean over the examples of |accuracy - mean confidence| of their bin (Naeini et al. 2015).

    Bins are [0, 1/bins), [1/bins, 2/bins), …, and of those with a confidence of 1; each argument is (N,).
    """
    confidence, right = confidence.double(), right.double()
    places = np.digitize(confidence.numpy(), np.linspace(0, 1, bins + 1))
    return float(np.abs(np.bincount(places, (right - confidence).numpy())).sum() / len(places))


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Of p = softmax(logits) and q, both (B, C): the mean over the batch of (KL(p || q) + KL(q || p)) / 2."""
    log_p, log_q = logits.log_softmax(dim=-1), other.log_softmax(dim=-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2


def best_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T > 0 under which the cross-entropy of softmax(logits / T) is least: logits (N, C), targets (N,).

    Plus log(T)^2 / N: where every answer is right, no T is the best, and few examples don't make a model sure.
    """
    with torch.inference_mode(False), torch.enable_grad():  # a validation runs without gradients
        logits, targets = logits.clone(), targets.clone()
        logarithm = torch.zeros((), dtype=logits.dtype, device=logits.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(logits / logarithm.exp(), targets) + logarithm.square() / len(targets)
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return logarithm.detach().exp().item()
