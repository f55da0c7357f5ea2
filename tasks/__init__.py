"""Tasks: from batches to losses, scores and predictions."""

from tasks.baselines import (
    Baseline,
    BoostedForecaster,
    Persistence,
    RidgeForecaster,
    SeasonalNaive,
    TfidfClassifier,
    UsualValue,
)
from tasks.classification import ClassificationTask
from tasks.forecasting import ForecastingTask
from tasks.models import Identity, Mean, Pooling, SequenceModel, TokenEmbedding
from tasks.ngrams import NgramVotes
from tasks.task import DivergedError, Task, cosine, onecycle

__all__ = [
    "Baseline",
    "BoostedForecaster",
    "ClassificationTask",
    "DivergedError",
    "ForecastingTask",
    "Identity",
    "Mean",
    "NgramVotes",
    "Persistence",
    "Pooling",
    "RidgeForecaster",
    "SeasonalNaive",
    "SequenceModel",
    "Task",
    "TfidfClassifier",
    "TokenEmbedding",
    "UsualValue",
    "cosine",
    "onecycle",
]
