"""What TensorBoard itself reads out of the events of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.util.tensor_util import make_ndarray

from runs import board, figures
from runs.board import hyperparameters
from runs.build import build_datamodule, load_task
from runs.comparison import SCORES
from tests.runs.lab import SMALL, STEPS_PER_EPOCH, Lab

Finished = Callable[[str], Path]
hparams_api: Any = api_pb2  # made at run time
layouts: Any = layout_pb2
EPOCHS = [STEPS_PER_EPOCH * epoch - 1 for epoch in (1, 2, 3)]  # the steps at which Lightning logs validations


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def table_of_hyperparameters(runs: Mapping[str, Path]) -> tuple[list[str], dict[str, tuple[dict, dict]]]:
    """TensorBoard's own: its columns, and for each run its hyper-parameters and scores."""
    reader = EventMultiplexer()
    for name, folder in runs.items():
        reader.AddRun(str(folder), name)
    reader.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(reader, ""), multiplexer=reader))
    experiment = get_experiment.Handler(RequestContext(), context, "", hparams_api.GetExperimentRequest()).run()
    request = hparams_api.ListSessionGroupsRequest(slice_size=99, allowed_statuses=[hparams_api.STATUS_SUCCESS])
    for metric in experiment.metric_infos:
        request.col_params.add(metric=metric.name)
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    values = {
        group.name: (
            {name: value.string_value or value.number_value for name, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
        )
        for group in groups
    }
    columns = [each.name for each in experiment.hparam_infos] + [each.name.tag for each in experiment.metric_infos]
    return columns, values


def check_scores(scores: dict[str, float], folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    expected = {f"test/{name}": metrics["test"][name] for name in SCORES[metrics["task"]]}
    assert scores == pytest.approx(expected, rel=1e-5)


def test_each_run_is_shown_with_its_scores_beside_its_hyper_parameters(finished: Finished) -> None:
    runs = {"texts": finished("cls"), "series": finished("forecast")}
    columns, values = table_of_hyperparameters(runs)
    assert set(columns) >= {f"test/{name}" for names in SCORES.values() for name in names}
    for name, (parameters, scores) in values.items():
        check_scores(scores, runs[name])
        expected = {"seed": 0, "lr": 1e-3, "hidden_size": 8, "num_layers": 2, "optimizer": "Adam", "scheduler": "none"}
        assert parameters.items() >= expected.items()
    assert values["texts"][0]["model"] == "gru"
    assert values["texts"][0]["data.tokenizer"] == "char"  # as the command line had it
    assert values["series"][0]["data"] == "sample_climate"
    assert not [name for name in columns if name[0] == "_" or "enable_progress_bar" in name]


@pytest.mark.exhaustive
def test_in_a_sweep_baselines_and_networks_have_one_table(lab: Lab, tmp_path: Path) -> None:
    words = [word for word in SMALL["cls"] if not word.startswith(("model=", "model.enc"))]
    sweep = ("-m", *words, "trainer.max_epochs=1", "model=tfidf_nb,rnn", "seed=0,1", "optimizer.lr=0.01")
    outcome = lab.run(*sweep, f"hydra.sweep.dir={tmp_path}")
    assert outcome.code == 0, outcome.output
    runs = {folder.name: folder for folder in tmp_path.iterdir() if folder.is_dir()}
    columns, values = table_of_hyperparameters(runs)
    assert set(columns) >= {"lr", "hidden_size", "model", "seed"}
    assert len(values) == 4
    for name, (parameters, scores) in values.items():
        check_scores(scores, runs[name])
        assert f"{parameters['model']}_seed{parameters['seed']:.0f}" in name
        assert parameters.get("lr") == (None if "tfidf" in name else 0.01)


def test_losses_share_a_chart(finished: Finished) -> None:
    for task, scores in (("cls", ["val/accuracy", "val/f1"]), ("forecast", ["val/mae"])):
        events = events_of(finished(task))
        (config,) = events.Tensors("custom_scalars__config__")
        layout = layouts.Layout.FromString(make_ndarray(config.tensor_proto).item())
        charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
        assert charts == {"loss": ["train/loss", "val/loss"], "scores": scores, "learning rate": ["train/lr"]}
        assert {tag for tags in charts.values() for tag in tags} <= set(events.Tags()["scalars"])


def test_each_validation_has_its_confusion_matrix(finished: Finished) -> None:
    assert [event.step for event in events_of(finished("cls")).Images("val/confusion")] == EPOCHS
    assert "val/confusion" not in events_of(finished("forecast")).Tags()["images"]


def test_a_validation_counts_each_text_under_its_class_and_its_prediction(finished: Finished) -> None:
    from omegaconf import OmegaConf

    folder = finished("cls")
    task: Any = load_task(folder / "checkpoints" / "best.ckpt")
    data = build_datamodule(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
    for _ in range(2):  # each for itself
        truth, answers = [], []
        for batch in data.val_dataloader():
            _, outputs = task.loss(batch)
            task.update_validation(outputs, batch)
            truth += batch["targets"].tolist()
            answers += outputs.argmax(dim=1).tolist()
        task.validation_scores()
    expected = confusion_matrix(truth, answers, labels=range(len(task.classes)))
    assert np.array_equal(task.validation_details["confusion"], expected)
    assert sum(map(sum, task.validation_details["confusion"])) == len(truth)


def test_a_small_confusion_matrix_has_the_colours_of_the_large_one() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (4, 4)).tolist()
    small, large = (figures.confusion_matrix(counts, list("abcd"), small=size).axes[0] for size in (True, False))
    assert not small.texts
    np.testing.assert_array_equal(np.asarray(small.images[0].get_array()), np.asarray(large.images[0].get_array()))
    assert [label.get_text() for label in small.get_yticklabels()] == list("abcd")


def test_precision_over_recall_is_that_of_the_predictions(finished: Finished) -> None:
    folder = finished("cls")
    events, table = events_of(folder), pd.read_parquet(folder / "predictions.parquet")
    classes = [name[2:-1] for name in map(str, table) if name.startswith("p(")]
    assert len(classes) == 10
    for name in classes:
        (event,) = events.Tensors(f"precision over recall/{name}")
        hits, false_alarms = make_ndarray(event.tensor_proto)[:2]  # at thresholds rising from 0
        assert hits[0] == (table["target"] == name).sum()
        assert hits[0] + false_alarms[0] == len(table)
        middle = table[f"p({name})"] >= 63 / 126
        assert hits[63] == (middle & (table["target"] == name)).sum()


def test_texts_read_rightly_and_misread_are_shown_with_their_probability(finished: Finished) -> None:
    folder = finished("cls")
    events, table = events_of(folder), pd.read_parquet(folder / "predictions.parquet")
    right = table["target"] == table["prediction"]
    for name, rows in (("right", table[right]), ("wrong", table[~right])):
        (event,) = events.Tensors(f"test/{name}/text_summary")
        content: Any = make_ndarray(event.tensor_proto).item()
        shown = content.decode().splitlines()
        assert len(shown) == 2 + min(len(rows), board.SAMPLES)
        surest = rows.loc[rows["probability"].idxmax()]
        cells = [cell.strip() for cell in shown[2].strip("|").split("|")]
        assert cells[1:] == [surest["target"], surest["prediction"], f"{surest['probability']:.3f}"]


def test_a_run_without_a_mistake_says_so(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    right = {
        "text": ["a|b\nc"],
        "target": ["x"],
        "prediction": ["x"],
        "probability": [0.9],
        "p(x)": [0.9],
        "p(y)": [0.1],
    }
    board.finish(logger, {"task": "cls"}, pd.DataFrame(right), [], 5)
    logger.finalize("success")
    texts = {
        name: str(np.asarray(make_ndarray(events_of(tmp_path).Tensors(f"test/{name}/text_summary")[0].tensor_proto)))
        for name in ("right", "wrong")
    }
    assert "none" in texts["wrong"]
    assert "| a b c" in texts["right"]


def test_hyper_parameters_are_few_flat_and_those_of_the_command_line(tmp_path: Path) -> None:
    config = {
        "task": {"name": "cls", "pooling": "max", "dropout": 0.5, "ngrams": {"words": 2}},
        "data": {"name": "ignored", "batch_size": 32, "limit": None},
        "model": {"name": "gru", "encoder": {"hidden_size": 8, "num_layers": 1, "bidirectional": True}},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.0},
        "scheduler": None,
        "trainer": {"max_epochs": 3, "threads": 1},
        "seed": 7,
    }
    overrides = ["task.ngrams.words=2", "trainer.threads=1", "optimizer.lr=0.1", "model=gru", "experiment=best_cls"]
    overrides += ["model.encoder.bidirectional=true", "data.limit=null", "~logger"]
    (tmp_path / "status.json").write_text(json.dumps({"overrides": overrides}), encoding="utf-8")
    found = hyperparameters(config, "reviews", tmp_path)
    words = {"task": "cls", "model": "gru", "data": "reviews", "optimizer": "AdamW", "scheduler": "none"}
    numbers = {"seed": 7, "lr": 0.1, "weight_decay": 0.0, "hidden_size": 8, "num_layers": 1, "dropout": 0.5}
    numbers |= {"batch_size": 32, "max_epochs": 3}
    named = {"task.ngrams.words": 2, "experiment": "best_cls", "model.encoder.bidirectional": "True"}
    assert found == {**words, **numbers, "pooling": "max", **named}
    fitted = hyperparameters({**config, "model": {"name": "ridge", "baseline": {}}}, "reviews", tmp_path / "none")
    assert fitted == {"task": "cls", "model": "ridge", "data": "reviews", "seed": 7}
