"""What a user would try first: models that are fitted once on the training split, and tested like any other.

Legend: B batch, C classes, L lookback, H horizon, S steps of a season, F features, N training examples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.task import Batch

UNSEEN = -1e6  # logit of a class of which the training split has no example


class Baseline(nn.Module):
    """A model without an encoder.

    `fit` learns from the training split; `forward` answers in the task's own terms: class logits (B, C), or forecasts
    (B, H) in the unit of the batch's `history`. What was learned, tensors and plain values, stands in `learned` and in
    checkpoints.

    Args:
        facts: of the data.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self.facts = facts
        self.learned: dict[str, Any] = {}

    def fit(self, batches: Sequence[Batch]) -> None:
        """Learn from the training split; a baseline that learns nothing skips this."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Logits or forecasts."""

    @property
    def num_parameters(self) -> int:
        """Fitted coefficients."""
        return sum(value.numel() for value in self.learned.values() if isinstance(value, Tensor))

    def get_extra_state(self) -> dict[str, Any]:
        return self.learned

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.learned = state


# ---- classification --------------------------------------------------------------------------------------------------


class TfidfClassifier(Baseline):
    """A linear classifier of n-gram frequencies.

    A text's features are its character and word n-grams, each with (1 + log tf)(1 + log((1 + N) / (1 + df))), scaled
    to length one per kind (Salton and Buckley 1988); n-grams of a single training text are left out. The classifier
    is a linear support vector machine, one against the rest (Fan et al. 2008), or multinomial naive Bayes: both answer
    with X W^T + b.

    Args:
        facts: of the data: `classes`, `vocabulary`.
        classifier: `svm` or `nb`.
        characters: longest n-gram of characters; 0 for none.
        words: longest n-gram of words; 0 for none.
        strength: the SVM's C, or naive Bayes' smoothing alpha.
        seed: of the SVM's order of coordinates.

    Raises:
        ValueError: `classifier` is neither, or there are no n-grams.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        classifier: str = "svm",
        characters: int = 4,
        words: int = 2,
        strength: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(facts)
        if classifier not in ("svm", "nb"):
            raise ValueError(f"model.baseline.classifier must be svm or nb, got {classifier!r}")
        if characters < 0 or words < 0 or characters + words == 0:
            raise ValueError("model.baseline.characters and .words must not be negative, nor both 0")
        self.classifier, self.strength, self.seed = classifier, strength, seed
        self.ngrams = {"char": characters, "word": words}
        self._words = np.asarray(facts["vocabulary"], dtype=object)
        self._vectorizers: dict[str, Any] = {}

    def fit(self, batches: Sequence[Batch]) -> None:
        from scipy.sparse import hstack
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.svm import LinearSVC

        targets = torch.cat([batch["targets"] for batch in batches]).numpy()
        columns = []
        for kind, longest in self.ngrams.items():
            if longest:
                self._vectorizers[kind] = vectorizer = self._vectorizer(kind)
                columns.append(
                    vectorizer.fit_transform([text for batch in batches for text in self._texts(batch, kind)])
                )
        features: Any = hstack(columns, format="csr")
        if self.classifier == "svm":
            machine: Any = LinearSVC(C=self.strength, random_state=self.seed).fit(features, targets)
            weight, bias = machine.coef_, machine.intercept_
            if len(machine.classes_) == 2:  # one row tells two classes apart
                weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        else:
            machine = MultinomialNB(alpha=self.strength).fit(features, targets)
            weight, bias = machine.feature_log_prob_, machine.class_log_prior_
        count = len(self.facts["classes"])
        self.learned = {
            "weight": torch.zeros(count, features.shape[1]),
            "bias": torch.full((count,), UNSEEN),
            "terms": {kind: v.get_feature_names_out().tolist() for kind, v in self._vectorizers.items()},
            "idf": {kind: torch.from_numpy(v.idf_).float() for kind, v in self._vectorizers.items()},
        }
        self.learned["weight"][machine.classes_] = torch.from_numpy(np.asarray(weight, dtype=np.float32))
        self.learned["bias"][machine.classes_] = torch.from_numpy(np.asarray(bias, dtype=np.float32))

    def forward(self, batch: Batch) -> Tensor:
        from scipy.sparse import hstack

        columns = [v.transform(self._texts(batch, kind)) for kind, v in self._vectorizers.items()]
        logits = hstack(columns, format="csr") @ self.learned["weight"].numpy().T + self.learned["bias"].numpy()
        return torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(batch["inputs"].device)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        for kind, terms in state["terms"].items():
            self._vectorizers[kind] = self._vectorizer(kind).set_params(vocabulary=terms)
            self._vectorizers[kind].idf_ = state["idf"][kind].numpy()

    def _vectorizer(self, kind: str) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        options: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "dtype": np.float32}
        options["ngram_range"] = (1, self.ngrams[kind])
        if kind == "char":
            return TfidfVectorizer(analyzer="char", **options)
        return TfidfVectorizer(tokenizer=str.split, lowercase=False, **{"token_pattern": None}, **options)

    def _texts(self, batch: Batch, kind: str) -> list[str]:
        """Each text as it is, or its tokens with spaces between them."""
        if kind == "char":
            return ["".join(map(chr, filter(None, row))) for row in batch["characters"].tolist()]
        rows, lengths = self._words[batch["inputs"].cpu().numpy()], batch["lengths"].tolist()
        return [" ".join(row[:length]) for row, length in zip(rows, lengths, strict=True)]


# ---- forecasting -----------------------------------------------------------------------------------------------------


class Persistence(Baseline):
    """It stays as it is: every step of the forecast is the last value."""

    def forward(self, batch: Batch) -> Tensor:
        return batch["history"][:, -1:].repeat(1, self.facts["horizon"])


class SeasonalNaive(Baseline):
    """Tomorrow is like today: the last season again and again, `forecast[h] = history[L - S + h mod S]`."""

    def forward(self, batch: Batch) -> Tensor:
        return seasonal_naive(batch["history"], self.facts["horizon"], self.facts["season_length"])


class UsualValue(Baseline):
    """It is as usual at that time of the year and of the day: the training split's harmonic climatology."""

    def forward(self, batch: Batch) -> Tensor:
        return batch["climatology"]


class RidgeForecaster(Baseline):
    """Ridge regression (Hoerl and Kennard 1970) of all steps at once on everything in the window.

    forecast = climatology + target_std (x W^T + b), with x the scaled inputs (L F), the last value and the climatology
    ahead, all in float32; W and b minimise the mean squared error plus `penalty` |W|^2 / N.

    Args:
        facts: of the data: `horizon`, `target_mean`, `target_std`.
        penalty: of the coefficients' squares.
    """

    def __init__(self, facts: dict[str, Any], penalty: float = 1000.0) -> None:
        super().__init__(facts)
        self.penalty = penalty

    def fit(self, batches: Sequence[Batch]) -> None:
        from sklearn.linear_model import Ridge

        features = torch.cat([self._features(batch) for batch in batches]).numpy()
        anomalies = torch.cat([batch["targets"].float() - batch["climatology"].float() for batch in batches])
        machine: Any = Ridge(alpha=self.penalty, solver="cholesky", copy_X=False)
        machine.fit(features, (anomalies / self.facts["target_std"]).numpy())
        self.learned = {
            "weight": torch.from_numpy(np.asarray(machine.coef_, dtype=np.float32)),
            "bias": torch.from_numpy(np.asarray(machine.intercept_, dtype=np.float32)),
        }

    def forward(self, batch: Batch) -> Tensor:
        weight, bias = (self.learned[name].to(batch["inputs"]) for name in ("weight", "bias"))
        return batch["climatology"].float() + self.facts["target_std"] * (self._features(batch) @ weight.T + bias)

    def _features(self, batch: Batch) -> Tensor:
        own_unit = torch.cat([batch["history"][:, -1:], batch["climatology"]], dim=1).float()
        scaled = (own_unit - self.facts["target_mean"]) / self.facts["target_std"]
        return torch.cat([batch["inputs"].flatten(1), scaled], dim=1)


class BoostedForecaster(Baseline):
    """Gradient-boosted trees (LightGBM: Ke et al. 2017), one model per step of the horizon, absolute error.

    Each model forecasts the departure from the climatology. Its features: the target's departures and all inputs at
    some lags, the inputs' means over some stretches, the climatology ahead.

    Args:
        facts: of the data: `horizon`, `season_length`, `lookback`.
        rounds: trees per step.
        learning_rate: of each tree.
        num_leaves: of a tree.
        seed: of the rows and features that a tree sees.

    Raises:
        ValueError: LightGBM is not installed.
    """

    LAGS = (0, 1, 2, 3, 5, 8, 11, 14, 17, 20, 23, 29, 35, 47, 71, 95, 119)
    MEANS = (6, 24, 72)

    def __init__(
        self,
        facts: dict[str, Any],
        rounds: int = 100,
        learning_rate: float = 0.1,
        num_leaves: int = 31,
        seed: int = 0,
    ) -> None:
        super().__init__(facts)
        try:
            import lightgbm
        except (ImportError, OSError) as error:  # OSError: its library lacks OpenMP
            raise ValueError('model=lightgbm needs the package lightgbm: pip install "rnn-lab[boosting]"') from error
        self._lightgbm: Any = lightgbm
        self.rounds = rounds
        self.options = {
            "objective": "regression_l1",
            "learning_rate": learning_rate,
            "num_leaves": num_leaves,
            "min_data_in_leaf": 100,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.5,
            "bagging_freq": 1,
            "max_bin": 63,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        self._boosters: list[Any] = []

    def fit(self, batches: Sequence[Batch]) -> None:
        from tqdm import tqdm

        data = self._lightgbm.Dataset(
            np.concatenate([self._features(batch) for batch in batches]), params=self.options, free_raw_data=False
        ).construct()  # sorted into bins once for all steps
        anomalies = torch.cat([batch["targets"].float() - batch["climatology"].float() for batch in batches]).numpy()
        options = {**self.options, "num_threads": torch.get_num_threads()}
        self._boosters = [
            self._lightgbm.train(options, data.set_label(np.ascontiguousarray(anomalies[:, step])), self.rounds)
            for step in tqdm(range(anomalies.shape[1]), desc="boosting", unit=" steps", disable=None)
        ]
        self.learned = {"models": [booster.model_to_string() for booster in self._boosters]}

    def forward(self, batch: Batch) -> Tensor:
        features = self._features(batch)
        answers = np.stack([booster.predict(features) for booster in self._boosters], axis=1)
        return batch["climatology"].float() + torch.from_numpy(answers).to(batch["inputs"])

    @property
    def num_parameters(self) -> int:
        """Leaves of all trees, at most."""
        return len(self._boosters) * self.rounds * self.options["num_leaves"]

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._boosters = [self._lightgbm.Booster(model_str=text) for text in state["models"]]

    def _features(self, batch: Batch) -> np.ndarray:
        inputs, history, usual = (batch[name].float().cpu().numpy() for name in ("inputs", "history", "climatology"))
        lookback, season = history.shape[1], self.facts["season_length"]
        if season <= usual.shape[1]:  # what was usual then is what will be at that phase of the season to come
            ahead = usual[:, np.arange(-lookback, 0) % season]
        else:
            ahead = usual.mean(axis=1, keepdims=True)
        lags = [lookback - 1 - lag for lag in self.LAGS if lag < lookback]
        means = [inputs[:, -length:].mean(axis=1) for length in self.MEANS]
        return np.concatenate(
            [(history - ahead)[:, lags], inputs[:, lags].reshape(len(inputs), -1), *means, usual[:, ::6]], axis=1
        )


def seasonal_naive(history: Tensor, horizon: int, season_length: int) -> Tensor:
    """Repeat the last season: history (B, L) to (B, H), with forecast[h] = history[L - S + h mod S]."""
    season = history[:, -season_length:]
    return season.repeat(1, -(-horizon // season_length))[:, :horizon]
