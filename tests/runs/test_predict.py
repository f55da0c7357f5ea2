from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import run
from datamodules import DataError
from datamodules.synthetic import sample_climate, sample_reviews
from runs.analysis import scores
from runs.build import load_task
from runs.checkpoints import read_checkpoint
from runs.errors import CheckpointError
from runs.predict import predict, series, texts
from runs.schema import ConfigError, PredictConfig
from tests.runs.lab import ROOT, SMALL, Lab

FORMAT = "%d.%m.%Y %H:%M:%S"
DEFAULTS = {
    option.name: option.default if option.default is not MISSING else option.default_factory()  # type: ignore[misc]
    for option in fields(PredictConfig)
}


def made(**options: Any) -> None:
    """`predict` in this process."""
    predict(DEFAULTS | {name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, encoding="utf-8-sig", keep_default_na=False, na_values={"probability": [""]})


@pytest.fixture(scope="module")
def reviews(finished: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The run's own test rows as a file, and what it made of them."""
    return _test_rows(finished("cls"), tmp_path_factory.mktemp("reviews"))


def _test_rows(folder: Path, place: Path) -> tuple[Path, pd.DataFrame]:
    kept = pd.read_parquet(folder / "predictions.parquet")
    path = place / "评 论.csv"
    kept[["row", "text", "target"]].rename(columns={"text": "review"}).to_csv(path, index=False, encoding="utf-8-sig")
    return path, kept


def check_reviews(folder: Path, path: Path, kept: pd.DataFrame, output: Path, **options: Any) -> None:
    made(run=folder, input=path, output=output, **options)
    found = read(output)
    assert [*found][:3] == ["row", "review", "target"]
    assert found["row"].tolist() == kept["row"].tolist()
    assert found["review"].tolist() == kept["text"].tolist()
    assert found["prediction"].tolist() == kept["prediction"].tolist()
    names = ["probability", *(name for name in map(str, kept) if name.startswith("p("))]
    assert [*found][3:] == ["prediction", *names, "note"]
    np.testing.assert_allclose(found[names], kept[names], atol=1e-6)
    assert set(found["note"]) <= {"", "no known word"}


def test_reviews_are_predicted_as_the_run_did_in_its_test(
    finished: Callable[[str], Path], reviews: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    check_reviews(finished("cls"), *reviews, tmp_path / "out.csv", batch_size=7)


def test_predictions_are_scored_by_a_column_of_labels_as_the_run_was_in_its_test(
    finished: Callable[[str], Path], reviews: tuple[Path, pd.DataFrame], tmp_path: Path, capsys: Any
) -> None:
    rows = pd.read_csv(reviews[0], encoding="utf-8-sig")
    others = pd.DataFrame({"row": -1, "review": ["很好", ""], "target": ["别的", rows["target"][0]]})
    pd.concat([rows, others]).to_csv(tmp_path / "t.csv", index=False)
    made(run=finished("cls"), input=tmp_path / "t.csv", output=tmp_path / "out.csv", target="target")
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    metrics = json.loads((finished("cls") / "metrics.json").read_text(encoding="utf-8"))
    for name, value in report["scores"].items():
        assert value == pytest.approx(metrics["test"][name], rel=1e-6), name
    assert {"accuracy", "precision_macro", "recall_macro", "f1_macro"} == {*report["scores"]}
    assert report["confusion"] == metrics["confusion"]
    pd.testing.assert_frame_equal(pd.DataFrame(report["per_class"]), pd.DataFrame(metrics["per_class"]), rtol=1e-6)
    assert (report["scored"], report["unknown_labels"]) == (len(rows), 1)
    assert "1 row(s) not scored: their 'target' is no class of the run" in capsys.readouterr().out
    assert (tmp_path / "out.png").stat().st_size > 1000


OTHERS = {
    "votes": ["model=gru", "task.ngrams.characters=2", "task.ngrams.words=2", "data.tokenizer=jieba"],
    "svm": ["model=tfidf_svm"],
    "whitespace": ["model=fasttext_like", "data.tokenizer=whitespace", "trainer.max_epochs=1"],
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", OTHERS)
def test_reviews_are_predicted_as_votes_and_baselines_did_in_their_test(kind: str, lab: Lab, tmp_path: Path) -> None:
    words = [word for word in SMALL["cls"] if not word.startswith(("model", "data.tokenizer"))]
    given = [*OTHERS[kind], *(["data.tokenizer=char"] if kind == "svm" else [])]
    outcome = lab.run(*words, *given, f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 0, outcome.output
    check_reviews(tmp_path / "run", *_test_rows(tmp_path / "run", tmp_path), tmp_path / "out.csv")
    if kind == "svm":
        with pytest.raises(ConfigError, match="model=tfidf_svm has no embedding"):
            made(run=tmp_path / "run", text="很好", explain=True)


LINES = {
    "书籍,0,内容很好": "",
    "书籍,0,": "empty",
    "书籍,0,\ufeff \0": "NULs removed: 1; empty",
    '书籍,0,"a quote, and never': "a quote is never closed",
    "书籍,0": "row has 2 fields, the header has 3",
    "书籍,0,很好,不错": "row has 4 fields, the header has 3",
    "书籍,0,😀🙃": "no known word",
    "书籍,0,NA": "no known word",
    "书籍,0," + "好" * 100_000: "cut to 256 tokens",
    '书籍,0,"两""行\n文字"': "",
    "=1+1,0,很好": "",
}


def test_every_row_of_a_hostile_file_has_its_row(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ROWS", 5)
    path, output = tmp_path / "hostile.csv", tmp_path / "out.csv"
    damaged = "平板,1,屏幕不错".encode("gb18030") + b"\n"
    lines = [line.encode() + b"\n" for line in LINES]
    path.write_bytes(b"cat,label,review\n" + b"".join(lines) + damaged + lines[0])
    made(run=finished("cls"), input=path, output=output)
    found = read(output)
    assert found["note"].tolist()[: len(LINES)] == list(LINES.values())
    assert found["note"].iloc[-2].startswith("characters that are not utf-8: ")
    usable = ~found["note"].str.contains("empty|fields|closed")
    assert (found["prediction"] != "").tolist() == usable.tolist()
    assert found["probability"].notna().tolist() == usable.tolist()
    numbers = [name for name in map(str, found) if name.startswith("p(") or name == "probability"]
    words = [name for name in map(str, found) if name not in (*numbers, "label")]
    assert found.loc[0, words].tolist() == found.iloc[-1][words].tolist()
    one, other = (row[numbers].astype(float) for row in (found.iloc[0], found.iloc[-1]))
    np.testing.assert_allclose(one, other, rtol=1e-5)  # in another batch, sums are rounded otherwise
    assert found["review"].iloc[8] == "好" * 100_000
    assert found["review"].iloc[5] == "很好,不错"
    assert found["review"].iloc[9] == '两"行\n文字'
    probabilities = found.loc[usable, numbers].drop(columns="probability").astype(float)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_other_columns_encodings_and_formats_of_reviews(
    finished: Callable[[str], Path], reviews: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    _, kept = reviews
    other = tmp_path / "other.csv"
    frame = kept[["text", "row"]].rename(columns={"text": "内容"})
    frame.to_csv(other, index=False, sep=";", encoding="gb18030")
    given = {"encoding": "gb18030", "separator": ";", "text_column": "内容"}
    made(run=finished("cls"), input=other, output=tmp_path / "新 的" / "out.parquet", checkpoint="last", **given)
    found = pd.read_parquet(tmp_path / "新 的" / "out.parquet")
    assert found["内容"].tolist() == kept["text"].tolist()
    assert found["probability"].dtype == np.float32
    for option in given:
        with pytest.raises(DataError, match=rf"(try |Try |with ){option}"):
            made(run=finished("cls"), input=other, output=tmp_path / "no.csv", **{**given, option: DEFAULTS[option]})
    assert not (tmp_path / "no.csv").exists()


def test_what_was_written_here_is_read_again_and_its_columns_stay(
    finished: Callable[[str], Path],
    reviews: tuple[Path, pd.DataFrame],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, _ = reviews
    for number in (1, 2, 3):
        output = tmp_path / f"{number}.csv"
        made(run=finished("cls"), input=path, output=output)
        path = output
    once, thrice = read(tmp_path / "1.csv"), read(tmp_path / "3.csv")
    new = [*once][3:]
    assert [*thrice] == [*once, *(f"{name}_2" for name in new), *(f"{name}_3" for name in new)]
    pd.testing.assert_frame_equal(thrice[[*once]], once)
    again = thrice[[f"{name}_3" for name in new]].set_axis(new, axis=1)
    pd.testing.assert_frame_equal(again, once[new], check_dtype=False)
    assert "2.csv has a column 'note' already: those of the predictions end in _3" in caplog.text


def test_texts_that_a_spreadsheet_would_compute_stay_texts_where_that_is_asked_for(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "很好=1", "'=1"]
    columns = {"review": texts, "=cmd()": texts, "more": ["很好"] * len(texts)}
    pd.DataFrame(columns).to_csv(tmp_path / "in.csv", index=False)
    given = {"run": finished("cls"), "input": tmp_path / "in.csv", "text_column": "review"}
    for name in ("a.csv", "a.parquet"):
        made(**given, output=tmp_path / name, escape_formulas=True)
    made(**given, output=tmp_path / "raw.csv")
    escaped = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "很好=1", "'=1"]
    table = pd.read_csv(tmp_path / "a.csv", encoding="utf-8-sig")
    assert table["review"].tolist() == table["'=cmd()"].tolist() == escaped
    for plain in (pd.read_csv(tmp_path / "raw.csv", encoding="utf-8-sig"), pd.read_parquet(tmp_path / "a.parquet")):
        assert plain["review"].tolist() == plain["=cmd()"].tolist() == texts


def test_reviews_without_a_header_in_a_compressed_file_are_predicted(
    finished: Callable[[str], Path], reviews: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    rows = reviews[1][["target", "text"]]
    content = "title\n# comment\n" + "".join(f'{label}\t{text}"\n' for label, text in rows.to_numpy().tolist())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("x/test.tsv", content + "\t\n")
        archive.writestr("x/train.tsv", "")
    form = {"header": False, "quote": "none", "skip_lines": 1, "comment": "#", "text_column": "2", "target": "1"}
    made(
        run=finished("cls"), input=tmp_path / "all.zip/x/test.tsv", output=tmp_path / "out.csv", separator="tab", **form
    )
    found = read(tmp_path / "out.csv")
    assert found["2"].tolist() == [*(rows["text"] + '"'), ""]
    assert found["note"].iloc[-1] == "empty"
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["scored"] == len(rows)
    with pytest.raises(DataError, match=r"holds \['x/test.tsv', 'x/train.tsv'\]: name one as input="):
        made(run=finished("cls"), input=tmp_path / "all.zip", output=tmp_path / "no.csv", **form)


def test_weights_that_are_not_calibrated_are_said_to_be_so(
    finished: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = read_checkpoint(finished("cls") / "checkpoints" / "last.ckpt")
    assert not older.pop("calibrated")
    torch.save(older, tmp_path / "older.ckpt")
    for checkpoint, warned in {"best": False, "last": True, tmp_path / "older.ckpt": False}.items():
        caplog.clear()
        made(run=finished("cls"), text="很好", checkpoint=checkpoint)
        assert ("last.ckpt is not calibrated: probabilities may be off" in caplog.text) == warned
        assert bool(caplog.text) == warned


def test_a_run_that_ended_before_its_first_validation_answers_with_the_weights_that_were_scored(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    outcome = lab.run(*SMALL["cls"], "trainer.max_steps=5", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.output
    scored = pd.read_parquet(folder / "predictions.parquet")
    texts = tmp_path / "texts.csv"
    scored[["text"]].to_csv(texts, index=False)
    made(run=folder, input=texts, output=tmp_path / "answers.csv", text_column="text")
    assert pd.read_csv(tmp_path / "answers.csv")["prediction"].tolist() == scored["prediction"].tolist()
    assert "not calibrated" not in caplog.text


def test_a_run_of_older_code_predicts_though_its_configuration_has_what_is_gone(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(finished("cls"), tmp_path / "run")
    config: Any = OmegaConf.load(tmp_path / "run" / "config.yaml")
    config.gone, config.callbacks.gone = {"since": 1}, 2
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    made(run=tmp_path / "run", text="很好")


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ('{"state": "finished"}', ""),
        ('{"state": "running"}', "run has not finished: these are the weights so far"),
        ('{"state": "fin', "status.json is damaged"),
        (None, "run has not finished: these are the weights so far"),
    ],
)
def test_a_run_that_may_not_have_finished_predicts_and_says_so(
    content: str | None,
    warning: str,
    finished: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = Path(shutil.copytree(finished("cls"), tmp_path / "run")) / "status.json"
    status.unlink() if content is None else status.write_text(content, encoding="utf-8")
    made(run=tmp_path / "run", text="很好")
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


@pytest.mark.parametrize(("part", "value"), [("model", "lstm"), ("seed", 7)])
def test_weights_of_another_run_in_the_folder_are_refused(
    part: str, value: Any, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("cls"), tmp_path / "run"))
    config: Any = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(config, "model.name" if part == "model" else part, value)
    OmegaConf.save(config, folder / "config.yaml")
    with pytest.raises(CheckpointError, match=rf"best.ckpt is of {part}=\w+, .*run of {part}={value}"):
        made(run=folder, text="很好")


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"run": "nowhere"}, ConfigError, "run=nowhere is not a run folder: it has no config.yaml"),
    ({"run": "."}, ConfigError, "it holds several, choose one: damaged, run"),
    ({"run": "damaged"}, ConfigError, "config.yaml is damaged or not that of a run"),
    ({"input": "none.csv"}, ConfigError, "input=none.csv is not a file"),
    ({"input": None}, ConfigError, "give either input=FILE and output=FILE, or text="),
    ({"text": "好"}, ConfigError, "give either input=FILE and output=FILE, or text="),
    ({"output": None}, ConfigError, "output is missing"),
    ({"output": "out.xlsx"}, ConfigError, "must end in .csv or .parquet"),
    ({"output": "t.csv"}, ConfigError, "t.csv is the input, and would be overwritten"),
    ({"output": "t.csv", "overwrite": True}, ConfigError, "t.csv is the input, and would be overwritten"),
    ({"output": "link.csv", "overwrite": True}, ConfigError, "link.csv is the input, and would be overwritten"),
    (
        {"input": "drawn.html", "output": "drawn.csv", "explain": True, "overwrite": True},
        ConfigError,
        "drawn.html is the input, and would be overwritten",
    ),
    ({"output": "there.csv"}, ConfigError, "there.csv is there already: choose another output, or say overwrite=true"),
    ({"output": "drawn.csv", "explain": True}, ConfigError, "drawn.html is there already"),
    ({"checkpoint": "best.pt"}, CheckpointError, "best.pt does not exist; there are best.ckpt, last.ckpt"),
    ({"checkpoint": "torn.ckpt"}, CheckpointError, "torn.ckpt is damaged"),
    ({"target": "cat"}, DataError, r"columns \['cat'\] are missing; .*with target"),
    ({"every": "1h"}, ConfigError, "every is no option for run, a run of task=cls"),
    ({"text_column": "cat"}, DataError, r"columns \['cat'\] are missing; .*with text_column"),
    ({"input": "t.csv/t.csv"}, DataError, "t.csv is not a zip archive"),
    ({"names": ["x"]}, DataError, "^names is for a file without a header: add header=false"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES, ids=[str(change) for change, _, _ in MISTAKES])
def test_a_mistake_is_one_message_and_nothing_is_written(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    finished: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(finished("cls"), "run")
    Path("damaged").mkdir()
    Path("damaged/config.yaml").write_text("task: [", encoding="utf-8")
    Path("t.csv").write_text("review\n很好\n", encoding="utf-8")
    Path("torn.ckpt").write_bytes((finished("cls") / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    for name in ("there.csv", "drawn.html"):
        Path(name).touch()
    os.link("t.csv", "link.csv")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        made(**{"run": "run", "input": "t.csv", "output": "out.csv", **change})
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_is_replaced_only_when_asked(finished: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("review\n很好\n", encoding="utf-8")
    (tmp_path / "out.csv").write_text("old", encoding="utf-8")
    made(run=finished("cls"), input=tmp_path / "t.csv", output=tmp_path / "out.csv", overwrite=True)
    assert read(tmp_path / "out.csv")["review"].tolist() == ["很好"]


def test_an_output_that_is_locked_is_noticed_before_anything_is_read(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("not,what,is,wanted", encoding="utf-8")
    (tmp_path / "out.html").write_text("old", encoding="utf-8")
    plainly = Path.open

    def locked(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name == "out.html" and mode != "rb":  # as Windows does while another program has it open
            raise PermissionError(13, "Permission denied", str(path))
        return plainly(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", locked)
    given = {"input": tmp_path / "t.csv", "output": tmp_path / "out.csv", "explain": True, "overwrite": True}
    with pytest.raises(PermissionError, match=r"Permission denied.*out\.html"):
        made(run=finished("cls"), **given)
    assert not (tmp_path / "out.csv").exists()


def test_a_text_is_predicted_and_explained_on_the_console(lab: Lab, finished: Callable[[str], Path]) -> None:
    text = """屏幕清晰, 续航{不错}: it's "good" [5] = ${oc.env:SOME_TOKEN} \\"""
    outcome = lab.run("-cn", "predict", f"run={finished('cls')}", f"text={text}", "explain=true")
    assert outcome.code == 0, outcome.output
    classes = json.loads((finished("cls") / "metrics.json").read_text(encoding="utf-8"))["per_class"]
    assert all(each["class"] in outcome.output for each in classes)
    assert text in outcome.output
    assert "all together" in outcome.output
    assert re.search(r"strongest: \S+ [-+]\d+\.\d\d, ", outcome.output)
    shown = [float(word) for word in outcome.output.split() if word.startswith("0.") and len(word) == 6]
    assert sum(shown) == pytest.approx(1, abs=1e-3)
    assert shown == sorted(shown, reverse=True)
    assert not (ROOT / "predict.log").exists()


@pytest.mark.slow
def test_a_locale_that_is_not_utf_8_changes_nothing(finished: Callable[[str], Path], tmp_path: Path) -> None:
    table = tmp_path / "评 论.csv"
    table.write_text("review\n很好的酒店\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outputs = []
    for words in (["text=很好的酒店"], [f"input={table}", f"output={tmp_path}/输 出.csv"]):
        command = [sys.executable, "run.py", "-cn", "predict", f"run={finished('cls')}", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout.decode())
    found = read(tmp_path / "输 出.csv")
    assert found["review"].tolist() == ["很好的酒店"]
    assert f"{found['probability'][0]:.4f}" in outputs[0]


@settings(max_examples=200, deadline=None)
@example(text="'hi'")
@example(text='"很好"')
@given(text=st.text("ab'\"\\${}=,:[]() \n%好😀", max_size=12) | st.text(max_size=12))
def test_a_text_reaches_the_program_as_it_was_typed(text: str) -> None:
    word = run.as_typed(f"text={text}")
    parsed = OverridesParser.create().parse_override(word)
    assert not parsed.is_sweep_override()
    assert OmegaConf.create({"text": parsed.value()})["text"] == text


@pytest.mark.parametrize("typed", ["""'Date Time'""", '"Date Time"', "Date Time"])
def test_a_column_may_be_in_the_quotes_that_a_training_wants(typed: str) -> None:
    parsed = OverridesParser.create().parse_override(run.as_typed(f"time_column={typed}"))
    assert parsed.value() == "Date Time"


ODD_NAME = "T [degC] [/sun] :smile:"


def test_a_class_is_printed_as_it_is_called(
    finished: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = load_task(finished("cls") / "checkpoints" / "best.ckpt")
    task.classes = [f"{name} {ODD_NAME}" for name in task.classes]  # type: ignore[union-attr]
    texts.predict_text(task, DEFAULTS | {"text": "很好"})
    assert task.classes[0] in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("review\n很好\n", encoding="utf-8")
    given = {"run": "run", "input": str(tmp_path / "t.csv"), "output": str(tmp_path / "out.csv")}
    texts.predict_file(task, {"encoding": "utf-8", "separator": ",", "text_column": "review"}, DEFAULTS | given)
    assert ODD_NAME in capsys.readouterr().out


def test_explanations_are_a_page_of_their_own(finished: Callable[[str], Path], tmp_path: Path) -> None:
    path, output = tmp_path / "t.csv", tmp_path / "out.csv"
    path.write_text("review\n屏幕 <很> 清晰\n\n物流很快\n苹果很甜\n", encoding="utf-8")
    made(run=finished("cls"), input=path, output=output, explain=True, explain_limit=2)
    page = output.with_suffix(".html").read_text(encoding="utf-8")
    found = read(output)
    assert page.count("<article") == 2
    assert "http" not in page.replace("<!doctype html>", "")
    assert "&lt;" in page
    assert "<很>" not in page
    first, second = page.split("<article")[1:]
    assert f"<b>{found['prediction'][0]}</b>" in first
    assert "line 4" in second
    assert f"{found['probability'][2]:.1%}" in second


# --- forecasts ---


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The end of what the run was trained on."""
    frame = sample_climate(3, 0)
    return frame.iloc[-1600:].reset_index(drop=True)


def write(frame: pd.DataFrame, path: Path, **options: Any) -> Path:
    frame.to_csv(path, index=False, **options)
    return path


def test_forecasts_are_those_of_the_run_at_the_same_origins_and_so_are_their_scores(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path
) -> None:
    folder, output = finished("forecast"), tmp_path / "out.csv"
    made(run=folder, input=write(readings, tmp_path / "t.csv"), output=output, every="2h")
    found = pd.read_csv(output, encoding="utf-8-sig", parse_dates=["origin", "time"])
    assert [*found] == ["origin", "time", "step", "forecast", "truth"]
    assert (found["time"] - found["origin"] == pd.to_timedelta(found["step"], unit="h")).all()
    kept = pd.read_parquet(folder / "predictions.parquet")
    both = kept.merge(found, on=["origin", "step"])
    assert both["origin"].nunique() > 10
    np.testing.assert_allclose(both["forecast"], both["prediction"], atol=1e-4)
    np.testing.assert_allclose(both["truth"], both["target"], atol=1e-4)
    report = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    whole = found[found.groupby("origin")["truth"].transform(lambda truth: truth.notna().all())]
    errors = (whole["forecast"] - whole["truth"]).abs()
    assert report["forecasts"] == found["origin"].nunique()
    assert report["scored"] == whole["origin"].nunique() == report["forecasts"] - 24
    assert report["scores"]["mae"] == pytest.approx(errors.mean(), rel=1e-4)
    assert report["scores"]["median_ae"] == pytest.approx(errors.median(), rel=1e-4)
    temperature = dict(zip(pd.to_datetime(readings["Date Time"], format=FORMAT), readings["T (degC)"], strict=True))
    before = whole["time"] - pd.to_timedelta(1 + (whole["step"] > 24), unit="D")
    mae = np.abs(before.map(temperature) - whole["truth"]).mean()
    assert report["scores"]["skill"] == pytest.approx(1 - errors.mean() / mae, abs=1e-3)
    for suffix in (".png", ".svg"):
        assert output.with_suffix(suffix).stat().st_size > 1000


def test_the_last_forecast_is_that_of_the_last_row_in_whatever_form_the_file_is(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plain, other = finished("forecast"), tmp_path / "plain.csv", tmp_path / "other.csv"
    made(run=folder, input=write(readings, tmp_path / "t.csv"), output=plain)
    first = pd.read_csv(plain, encoding="utf-8-sig", parse_dates=["origin", "time"])
    assert len(first) == 48
    assert first["origin"].unique() == pd.to_datetime(readings["Date Time"], format=FORMAT).iloc[-1]
    assert f"{first['time'].iloc[-1]:%Y-%m-%d %H:%M}" in capsys.readouterr().out
    names = {"T (degC)": "温度", "max. wv (m/s)": "gust", "p (mbar)": "压力", "wd (deg)": "from: deg"}
    changed = readings.rename(columns={**names, "Date Time": "时间"}).iloc[:, ::-1]
    changed["时间"] = pd.to_datetime(changed["时间"], format=FORMAT).dt.strftime("%Y/%m/%d %H:%M")
    commas = changed.drop(columns="时间").astype(str).replace(r"\.", ",", regex=True)
    changed = changed.assign(**{str(name): commas[name] for name in commas})
    write(changed, tmp_path / "o.csv", sep="\t", encoding="gb18030")
    form = {"encoding": "gb18030", "separator": "tab", "time_column": "时间", "time_format": "%Y/%m/%d %H:%M"}
    form["decimal"] = ","
    columns = "{T (degC): 温度, p (mbar): 压力, wd (deg): 'from: deg'}"
    made(run=folder, input=tmp_path / "o.csv", output=other, columns=columns, **form)
    pd.testing.assert_frame_equal(pd.read_csv(other, encoding="utf-8-sig", parse_dates=["origin", "time"]), first)
    options = {"input": tmp_path / "o.csv", "output": tmp_path / "no.csv"}
    for name, message in {
        "encoding": "try encoding=gb18030",
        "separator": "Try separator=tab",
        "time_column": "or name others with time_column",
        "time_format": "set time_format",
        "decimal": "set decimal=','",
    }.items():
        with pytest.raises(DataError, match=message):
            made(run=folder, columns=columns, **options, **{**form, name: None})
    with pytest.raises(DataError, match=r"or name others with columns=\{ours: theirs\}"):
        made(run=folder, **options, **form)
    for wrong, message in {"{T: x}": "no 'T'; it reads T .degC., p", "T": "is not of the form", "{": "form"}.items():
        with pytest.raises(ConfigError, match=message):
            made(run=folder, columns=wrong, **options, **form)


def test_readings_in_other_forms_are_forecast_alike(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path
) -> None:
    folder = finished("forecast")
    made(run=folder, input=write(readings, tmp_path / "t.csv"), output=tmp_path / "first.csv")
    first = read(tmp_path / "first.csv")
    times = pd.to_datetime(readings["Date Time"], format=FORMAT)
    others = readings.drop(columns="Date Time")
    forms = {
        "[day, hour]": (
            others.assign(day=times.dt.strftime("%Y-%m-%d"), hour=times.dt.strftime("%H:%M")),
            "%Y-%m-%d %H:%M",
        ),
        "second": (others.assign(second=times.dt.strftime("%d/%m/%y %H.%M")), "%d/%m/%y %H.%M"),
        "iso": (others.assign(iso=[time.isoformat() for time in times]), "iso8601"),
    }
    for name, (frame, form) in forms.items():
        path = tmp_path / "other.tsv.gz"
        frame = frame.astype(str)
        frame.loc[3, "rh (%)"] = "M"
        write(frame, path, sep="\t", encoding="utf-8")
        with gzip.open(path, "at", encoding="utf-8") as file:  # blank rows, as spreadsheets leave them
            file.write(("\t" * (len(frame.columns) - 1) + "\n") * 3)
        options = {"time_column": name, "time_format": form, "separator": "tab", "missing_words": ["M"]}
        made(run=folder, input=path, output=tmp_path / "other.csv", overwrite=True, **options)
        pd.testing.assert_frame_equal(read(tmp_path / "other.csv"), first)
    seconds = others.assign(time=times.astype("datetime64[s]").astype("int64"))  # UTC's, but whose were the training's?
    options = {"input": write(seconds, tmp_path / "s.csv"), "time_column": "time", "time_format": "epoch_s"}
    with pytest.raises(DataError, match="those that the model was trained on had none"):
        made(run=folder, output=tmp_path / "s_out.csv", **options)


def test_forecasts_that_were_written_here_are_read_again(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path
) -> None:
    folder, written = finished("forecast"), tmp_path / "written.csv"
    made(run=folder, input=write(readings, tmp_path / "t.csv"), output=written, every="2d")
    columns = {name: "forecast" for name in ("T (degC)", "p (mbar)", "rh (%)", "VPact (mbar)", "wv (m/s)", "wd (deg)")}
    form = {"time_column": "time", "time_format": "iso8601", "columns": columns}
    made(run=folder, input=written, output=tmp_path / "out.csv", **form)
    last = read(written)["time"].iloc[-1]
    assert set(read(tmp_path / "out.csv")["origin"]) == {last}


def test_ten_minute_readings_are_resampled_back_from_the_last_one(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path
) -> None:
    hours = readings.iloc[-130:]
    finer = hours.loc[hours.index.repeat(6)].reset_index(drop=True)
    times = pd.date_range("2016-12-25 00:50", periods=len(finer), freq="10min")
    finer["Date Time"] = times.strftime(FORMAT)
    finer = finer.iloc[:-2]  # the last hour is not over
    made(run=finished("forecast"), input=write(finer, tmp_path / "t.csv"), output=tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", encoding="utf-8-sig", parse_dates=["origin", "time"])
    assert found["origin"].unique() == times[-3]
    assert found["time"].iloc[0] == times[-3] + pd.Timedelta("1h")


def test_a_reading_that_is_infinite_in_float32_is_refused_with_its_line(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path
) -> None:
    broken = readings.copy()
    broken.loc[broken.index[-3], "p (mbar)"] = 1e39
    message = rf"line {len(readings) - 1}: 1e\+39 in column 'p .mbar.' is too large .* if the value is missing$"
    with pytest.raises(DataError, match=message):
        made(run=finished("forecast"), input=write(broken, tmp_path / "t.csv"), output=tmp_path / "out.csv")


def test_a_target_is_printed_as_its_column_is_called(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = load_task(finished("forecast") / "checkpoints" / "best.ckpt")
    task.facts = task.facts | {"target": ODD_NAME}  # type: ignore[operator]
    given = {"input": str(write(readings, tmp_path / "t.csv")), "output": str(tmp_path / "out.csv")}
    series.forecast_file(task, DEFAULTS | given)
    assert ODD_NAME in capsys.readouterr().out


def test_an_incomplete_lookback_is_used_only_when_asked_and_an_older_one_said(
    finished: Callable[[str], Path], readings: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = readings.copy()
    broken.loc[broken.index[-3], "p (mbar)"] = -9999
    table, output = write(broken, tmp_path / "t.csv"), tmp_path / "out.csv"
    options = {"run": finished("forecast"), "input": table, "output": output}
    with pytest.raises(DataError, match=r"'p .mbar.' in 1 of them .* complete one ends 3h before: max_age=3h"):
        made(**options, max_age="2h")
    made(**options, max_age="3h")
    assert "3h before the last reading" in caplog.text
    origin = pd.read_csv(tmp_path / "out.csv", encoding="utf-8-sig", parse_dates=["origin"])["origin"].iloc[0]
    assert origin == pd.to_datetime(readings["Date Time"], format=FORMAT).iloc[-4]
    write(readings.iloc[::3], tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv are 3h apart, which doesn't suit the model's step of 1h: give"):
        made(**{**options, "output": tmp_path / "no.csv"})
    write(readings.iloc[-100:], tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"begins at .* the model reads 120 steps of 1h, and 20 of them would be older"):
        made(**{**options, "output": tmp_path / "no.csv"})
    with pytest.raises(DataError, match="no complete lookback"):
        made(**{**options, "output": tmp_path / "no.csv"}, every="1d")
    gap = readings.drop(index=readings.index[-160:-100])
    write(gap, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"missing 20 of 120 readings .* let it end earlier with max_age"):
        made(**{**options, "output": tmp_path / "no.csv"})
    for wrong, message in {"soon": "every='soon' is not a duration", "90min": "multiple of the model's step"}.items():
        with pytest.raises(ConfigError, match=message):
            made(**{**options, "output": tmp_path / "no.csv"}, every=wrong)


@pytest.mark.slow
def test_quantiles_have_columns_of_their_own(lab: Lab, readings: pd.DataFrame, tmp_path: Path) -> None:
    words = [*SMALL["forecast"], "task.quantiles=[0.1,0.5,0.9]", "trainer.max_epochs=1"]
    assert lab.run(*words, f"hydra.run.dir={tmp_path}/run").code == 0
    made(run=tmp_path / "run", input=write(readings, tmp_path / "t.csv"), output=tmp_path / "out.csv", every="2h")
    found = pd.read_csv(tmp_path / "out.csv", encoding="utf-8-sig", parse_dates=["origin"])
    assert [*found][3:] == ["forecast", "q0.1", "q0.5", "q0.9", "truth"]
    assert (found["forecast"] == found["q0.5"]).all()
    assert (found["q0.1"] <= found["q0.5"]).all()
    assert (found["q0.5"] <= found["q0.9"]).all()
    both = pd.read_parquet(tmp_path / "run" / "predictions.parquet").merge(found, on=["origin", "step"])
    assert both["origin"].nunique() > 3
    for level in ("q0.1", "q0.9"):
        np.testing.assert_allclose(both[f"{level}_x"], both[f"{level}_y"], atol=1e-4)
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    whole = found[found.groupby("origin")["truth"].transform(lambda truth: truth.notna().all())]
    assert report["scored"] == whole["origin"].nunique()
    again = scores("forecast", whole.rename(columns={"truth": "target", "forecast": "prediction"}))
    for name in ("mae", "crps", "coverage_80"):
        assert report["scores"][name] == pytest.approx(again[name], rel=1e-5), name
    assert report["scores"]["width_80"] == pytest.approx((whole["q0.9"] - whole["q0.1"]).mean(), rel=1e-5)


# --- processes ---


def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
    """A process of its own, which writes to `log`, last its peak of memory."""
    program = (
        "import resource, sys, run; sys.argv[0] = 'run.py'; run.main(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, "-cn", "predict", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_killed_on_its_way_it_leaves_no_output(
    kill: signal.Signals, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    table = write(pd.concat([sample_reviews(2000, 0)] * 100), place / "t.csv")
    words = [f"run={finished('cls')}", f"input={table}", f"output={place}/out.csv"]
    process = start(tmp_path / "log.txt", *words)
    while not (beside := [path for path in place.glob(".out.csv.*") if path.stat().st_size > 100_000]):
        assert process.poll() is None, (tmp_path / "log.txt").read_text(encoding="utf-8")
        time.sleep(0.05)
    process.send_signal(kill)
    assert process.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[kill]
    assert "Traceback" not in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert not (place / "out.csv").exists()
    assert beside[0].exists() == (kill == signal.SIGKILL)
    table.write_text("review\n很好\n", encoding="utf-8")
    assert start(tmp_path / "log.txt", *words).wait() == 0
    assert sorted(path.name for path in place.iterdir()) == ["out.csv", "t.csv"]


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
@pytest.mark.parametrize("task", ["cls", "forecast"])
def test_memory_does_not_grow_with_the_file(task: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    peaks = {}
    for rows in (20_000, 200_000):
        if task == "cls":
            frame = pd.concat([sample_reviews(4000, 1)] * (rows // 4000))
        else:
            frame = pd.concat([sample_climate(3, 0).iloc[:1000]] * (rows // 1000))
            frame["Date Time"] = pd.date_range("1990-01-01", periods=rows, freq="h").strftime(FORMAT)
        table = write(frame, tmp_path / f"{rows}.csv")
        words = [f"run={finished(task)}", f"input={table}", f"output={tmp_path}/{rows}_out.csv"]
        code = start(tmp_path / "log.txt", *words).wait()
        output = (tmp_path / "log.txt").read_text(encoding="utf-8")
        assert code == 0, output
        peaks[rows] = int(output.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    assert peaks[200_000] - peaks[20_000] < 120e6, peaks
