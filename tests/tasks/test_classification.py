from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.metrics import precision_recall_fscore_support as sklearn_scores
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy

from rnn_cells import GRU
from tasks import ClassificationTask, TokenEmbedding
from tasks.classification import best_temperature, divergence

CLASSES = ["books", "书籍", "never seen", "phones"]
TARGETS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 1])
PREDICTIONS = np.array([0, 1, 0, 1, 3, 3, 3, 0, 3, 1])  # class 2 is in neither


def build(classes: list[str] = CLASSES, **options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(
        {"classes": classes, "vocab_size": 9, "padding_index": 0, "unknown_index": 1},
        inputs=partial(TokenEmbedding, embedding_dim=4),
        encoder=partial(GRU, hidden_size=3),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        **options,
    )


def expected_scores(targets: np.ndarray, predictions: np.ndarray, classes: int, average: str | None) -> Any:
    """Precision, recall, F1 and support, as sklearn computes them over all classes."""
    options: Any = {"labels": list(range(classes)), "average": average, "zero_division": 0}
    return sklearn_scores(targets, predictions, **options)


def logits_of(predictions: np.ndarray, classes: int = len(CLASSES), seed: int = 0) -> Tensor:
    """Random logits whose largest is the prediction's."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(predictions), classes))).float()
    logits[torch.arange(len(predictions)), torch.from_numpy(predictions)] = logits.max(dim=1).values + 0.5
    return logits


def after_test(
    task: ClassificationTask, targets: np.ndarray, logits: Tensor, batch_size: int = 4
) -> ClassificationTask:
    for start in range(0, len(targets), batch_size):
        part = slice(start, start + batch_size)
        batch = {"targets": torch.from_numpy(targets[part]), "index": torch.arange(len(targets))[part] + 100}
        task.update_test(logits[part], batch)
    task.finish_test()
    return task


def check_scores(task: ClassificationTask, targets: np.ndarray, predictions: np.ndarray) -> None:
    labels = list(range(len(task.classes)))
    for average in ("macro", "weighted"):
        *expected, _ = expected_scores(targets, predictions, len(labels), average)
        found = [task.scores[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected, abs=1e-6)
    assert task.scores["accuracy"] == pytest.approx(accuracy_score(targets, predictions))
    each = expected_scores(targets, predictions, len(labels), None)
    rows = task.details["per_class"]
    assert [row["class"] for row in rows] == task.classes
    for name, expected in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert [row[name] for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    assert task.details["confusion"] == confusion_matrix(targets, predictions, labels=labels).tolist()


def test_scores_match_sklearn_over_all_classes_also_one_that_never_occurs() -> None:
    task = after_test(build(), TARGETS, logits_of(PREDICTIONS))
    check_scores(task, TARGETS, PREDICTIONS)
    absent = task.details["per_class"][2]
    assert absent == {"class": "never seen", "precision": 0, "recall": 0, "f1": 0, "support": 0}


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_match_sklearn_on_random_answers(classes: int) -> None:
    generator = np.random.default_rng(classes)
    targets, predictions = generator.integers(0, classes, (2, 53))
    task = build([f"class {number}" for number in range(classes)])
    check_scores(after_test(task, targets, logits_of(predictions, classes), batch_size=7), targets, predictions)


def test_two_rounds_of_testing_do_not_mix() -> None:
    task = after_test(build(), TARGETS, logits_of(PREDICTIONS))
    later = np.array([3, 2, 1, 1, 0])
    after_test(task, later, logits_of(later[::-1].copy()))
    check_scores(task, later, later[::-1])
    assert len(task.predictions()) == 5


def test_predictions_hold_index_names_and_every_probability() -> None:
    logits = logits_of(PREDICTIONS)
    frame = after_test(build(), TARGETS, logits).predictions()
    assert list(frame) == ["index", "target", "prediction", "probability", *(f"p({name})" for name in CLASSES)]
    assert frame["index"].tolist() == list(range(100, 110))
    assert frame["target"].tolist() == [CLASSES[number] for number in TARGETS]
    assert frame["prediction"].tolist() == [CLASSES[number] for number in PREDICTIONS]
    powers = np.exp(logits.double().numpy())
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(frame.iloc[:, 4:].to_numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(frame["probability"], expected.max(axis=1), atol=1e-6)


def test_validation_scores_are_macro_over_all_classes_and_start_anew() -> None:
    task = build()
    for targets, predictions in ((TARGETS, PREDICTIONS), (TARGETS[:4], PREDICTIONS[1:5])):
        for part in (slice(0, 3), slice(3, None)):
            batch = {"targets": torch.from_numpy(targets[part])}
            task.update_validation(logits_of(predictions)[part], batch)
        *_, f1, _ = expected_scores(targets, predictions, 4, "macro")
        scores = task.validation_scores()
        assert set(scores) == {"accuracy", "f1"}
        assert scores["f1"].item() == pytest.approx(f1, abs=1e-6)
        assert scores["accuracy"].item() == pytest.approx(accuracy_score(targets, predictions))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_with_smoothed_targets(smoothing: float) -> None:
    task = build(label_smoothing=smoothing)
    batch = {
        "inputs": torch.randint(1, 9, (5, 6)),
        "lengths": torch.tensor([6, 5, 3, 1, 0]),
        "targets": torch.tensor([0, 1, 2, 3, 1]),
    }
    loss, logits = task.loss(batch)
    wanted = torch.full((5, 4), smoothing / 4)
    wanted[torch.arange(5), batch["targets"]] += 1 - smoothing
    torch.testing.assert_close(loss, -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean())
    if not smoothing:
        torch.testing.assert_close(loss, cross_entropy(task.model(batch["inputs"], batch["lengths"]), batch["targets"]))
    torch.testing.assert_close(task.predict_step(batch, 0).sum(dim=1), torch.ones(5))
    loss, logits = task.eval().loss(batch)  # comparable, whatever was trained on
    torch.testing.assert_close(loss, cross_entropy(logits, batch["targets"]))


def test_votes_of_ngrams_are_added_to_the_networks_logits() -> None:
    options: Any = {"characters": 2, "words": 1, "bits": 10, "dropout": 0.0, "scale": 3.0}
    task = build(ngrams=options)
    assert task.votes is not None
    torch.nn.init.normal_(task.votes.votes.weight)
    batch = {
        "inputs": torch.tensor([[3, 4, 5], [2, 0, 0]]),
        "lengths": torch.tensor([3, 1]),
        "characters": torch.tensor([[97, 98, 0], [99, 0, 0]]),
        "targets": torch.tensor([0, 1]),
    }
    votes = task.votes(task.votes.find(batch["characters"], batch["inputs"]))
    expected = task.model(batch["inputs"], batch["lengths"]) + votes
    torch.testing.assert_close(task.logits(batch), expected)
    assert build(ngrams={**options, "characters": 0, "words": 0}).votes is None


def test_the_temperature_is_the_one_under_which_the_cross_entropy_is_least() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 4, generator=generator).double()
    targets = torch.distributions.Categorical(logits=logits / 2.5).sample()
    found = best_temperature(logits, targets)
    tried = torch.linspace(0.5, 6, 2000).double()
    losses = torch.stack([cross_entropy(logits / temperature, targets) for temperature in tried])
    losses += tried.log().square() / 2000  # the tie-breaker
    assert found == pytest.approx(tried[losses.argmin()].item(), abs=0.01)
    assert found == pytest.approx(2.5, abs=0.3)
    for count in (4, 400):  # always right: no temperature has the least cross-entropy
        rows = torch.arange(count) % 4
        assert 0.2 < best_temperature(9 * torch.eye(4).double()[rows], rows) <= 1


def test_calibrated_probabilities_are_tempered_and_leave_every_prediction_as_it_was() -> None:
    torch.manual_seed(0)
    targets = np.random.default_rng(0).integers(0, 4, 3000)
    logits = 6 * torch.randn(3000, 4)  # far too sure
    logits[torch.arange(3000), torch.from_numpy(targets)] += 3
    plain, tempered = build(), build()
    tempered.calibrate(logits, torch.from_numpy(targets))
    assert tempered.temperature > 1.5
    for task in (plain, tempered):
        after_test(task, targets, logits, batch_size=700)
    assert tempered.scores["accuracy"] == plain.scores["accuracy"]
    assert tempered.scores["ece"] < 0.3 * plain.scores["ece"]
    assert tempered.details["ece_uncalibrated"] == pytest.approx(plain.scores["ece"])
    confidence = (logits / tempered.temperature).softmax(dim=1).max(dim=1).values
    np.testing.assert_allclose(tempered.predictions()["probability"], confidence, atol=1e-6)
    right = (logits.argmax(dim=1) == torch.from_numpy(targets)).float()
    kept = right[confidence.argsort(descending=True, stable=True)[:2700]]
    assert tempered.scores["accuracy_at_90"] == pytest.approx(kept.mean().item())
    gap = 0.0  # of confidence and accuracy, by bin
    for low in np.arange(15) / 15:
        rows = (confidence > low) & (confidence <= low + 1 / 15)
        if rows.any():
            gap += (rows.float().mean() * (right[rows].mean() - confidence[rows].mean()).abs()).item()
    assert tempered.scores["ece"] == pytest.approx(gap, abs=1e-5)


def test_the_divergence_is_the_mean_of_both_relative_entropies() -> None:
    logits, other = (logits_of(PREDICTIONS, seed=seed).double() for seed in (1, 2))
    p, q = Categorical(logits=logits), Categorical(logits=other)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean() / 2
    torch.testing.assert_close(divergence(logits, other), expected)
    assert divergence(logits, logits + 3).abs() < 1e-12  # a shift of all logits changes no probability


def test_consistency_without_any_dropout_is_refused_and_with_any_taken() -> None:
    with pytest.raises(ValueError, match=r"task\.consistency.* set task\.dropout"):
        build(consistency=1.0)
    build(consistency=0.0)
    build(consistency=1.0, dropout=0.1)
    ngrams = {"characters": 1, "words": 0, "bits": 8, "scale": 1.0}
    build(consistency=1.0, ngrams={**ngrams, "dropout": 0.1})
    with pytest.raises(ValueError, match="consistency"):
        build(consistency=1.0, ngrams={**ngrams, "dropout": 0.0})
    facts = {"classes": CLASSES, "vocab_size": 9, "padding_index": 0, "unknown_index": 1}
    common: Any = {"optimizer": partial(torch.optim.SGD, lr=0.1), "consistency": 1.0}
    for embedding in ({"dropout": 0.1}, {"token_dropout": 0.1}):
        inputs = partial(TokenEmbedding, embedding_dim=4, **embedding)
        ClassificationTask(facts, inputs, partial(GRU, hidden_size=3), **common)
    inputs = partial(TokenEmbedding, embedding_dim=4)
    ClassificationTask(facts, inputs, partial(GRU, hidden_size=3, num_layers=2, dropout=0.1), **common)


def test_consistency_compares_two_answers_under_different_dropout_in_training_alone() -> None:
    batch = {"inputs": torch.arange(2, 8).view(2, 3), "lengths": torch.tensor([3, 2]), "targets": torch.tensor([0, 3])}
    task = build(dropout=0.5, consistency=2.0, label_smoothing=0.1)
    torch.manual_seed(5)
    answers = task.logits({name: torch.cat([value, value]) for name, value in batch.items()}).chunk(2)
    entropies = [cross_entropy(answer, batch["targets"], label_smoothing=0.1) for answer in answers]
    torch.manual_seed(5)
    loss, logits = task.loss(batch)
    assert not torch.equal(*answers)
    torch.testing.assert_close(logits, answers[0])
    torch.testing.assert_close(loss, sum(entropies) / 2 + 2 * divergence(*answers))
    task.eval()
    loss, logits = task.loss(batch)
    torch.testing.assert_close(loss, cross_entropy(logits, batch["targets"]))


def test_members_answer_the_mean_of_their_logits_and_learn_each_from_its_own_error() -> None:
    ngrams: dict[str, Any] = {"characters": 1, "words": 1, "bits": 8, "dropout": 0.0}
    several = build(members=3, ngrams=ngrams)
    all_votes: list[Any] = [several.votes, *several.other_votes]
    for votes in all_votes:
        torch.nn.init.normal_(votes.votes.weight)
    batch = {
        "inputs": torch.tensor([[2, 3, 4], [5, 6, 0]]),
        "characters": torch.tensor([[70, 71], [72, 0]]),
        "lengths": torch.tensor([3, 2]),
        "targets": torch.tensor([1, 0]),
    }
    several.loss(batch)[0].backward()
    logits = []
    for member, votes in zip(several.members, all_votes, strict=True):
        alone = build(ngrams=ngrams)
        alone.model.load_state_dict(member.state_dict())
        alone.votes.load_state_dict(votes.state_dict())  # pyright: ignore[reportOptionalMemberAccess]
        alone.loss(batch)[0].backward()
        logits.append(alone.logits(batch).detach())
        torch.testing.assert_close(3 * votes.votes.weight.grad, alone.votes.votes.weight.grad)  # pyright: ignore
        for parameter, expected in zip(member.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(3 * parameter.grad, expected.grad)  # pyright: ignore[reportOperatorIssue]
    torch.testing.assert_close(several.logits(batch).detach(), torch.stack(logits).mean(dim=0))
    several.eval()
    loss, answer = several.loss(batch)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(answer, batch["targets"]))


def test_members_are_consistent_each_with_itself() -> None:
    torch.manual_seed(0)
    several = build(members=2, dropout=0.5, consistency=3.0)
    batch = {"inputs": torch.tensor([[2, 3, 4]]), "lengths": torch.tensor([3]), "targets": torch.tensor([1])}
    torch.manual_seed(7)
    loss = several.loss(batch)[0]
    torch.manual_seed(7)
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    passes = several.logits_of_members(twice).chunk(2, dim=1)
    entropies = [
        torch.nn.functional.cross_entropy(each[member], batch["targets"]) for each in passes for member in (0, 1)
    ]
    apart = [divergence(passes[0][member], passes[1][member]) for member in (0, 1)]
    torch.testing.assert_close(loss, sum(entropies) / 4 + 3.0 * sum(apart) / 2)
