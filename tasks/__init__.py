"""Tasks: from batches to losses, scores and predictions."""

from tasks.classification import ClassificationTask
from tasks.forecasting import ForecastingTask
from tasks.models import Identity, Pooling, SequenceModel, TokenEmbedding
from tasks.task import DivergedError, Task, cosine, onecycle

__all__ = [
    "ClassificationTask",
    "DivergedError",
    "ForecastingTask",
    "Identity",
    "Pooling",
    "SequenceModel",
    "Task",
    "TokenEmbedding",
    "cosine",
    "onecycle",
]
