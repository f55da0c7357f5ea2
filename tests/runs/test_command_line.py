from __future__ import annotations

import csv
import gc
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

import run
from datamodules.synthetic import sample_climate
from tests.runs.lab import ROOT, SMALL, Lab, Outcome

MODELS = ("rnn", "gru", "lstm", "bilstm")
HEAVY = ("torch", "pandas", "pytorch_lightning", "matplotlib", "jieba")


@pytest.fixture(scope="module")
def trials(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Outcome]]:
    """One batch of everything, for each model and task."""
    home = tmp_path_factory.mktemp("trials")

    def trial(task: str, model: str) -> tuple[Path, Outcome]:
        words = [word for word in SMALL[task] if not word.startswith("model=")]
        folder = home / f"{task} {model}"
        return folder, lab.run(*words, f"model={model}", "trainer.fast_dev_run=true", f"hydra.run.dir={folder}")

    pairs = [(task, model) for task in SMALL for model in MODELS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(pairs, pool.map(lambda pair: trial(*pair), pairs), strict=True))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", SMALL)
def test_every_model_passes_a_trial_run_on_both_tasks(task: str, model: str, trials: dict) -> None:
    folder, outcome = trials[task, model]
    assert outcome.code == 0, outcome.output
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["task"], metrics["model"], metrics["fast_dev_run"]) == (task, model, True)
    assert "these scores mean nothing" in outcome.output
    assert "Warning" not in outcome.output
    assert not (folder / "checkpoints").exists()


def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, in the project's folder."""
    keep = {name: value for name, value in os.environ.items() if name != "RNN_LAB_DATA"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**keep, **env}, capture_output=True, text=True, timeout=100
    )


def modules_imported(report: str) -> set[str]:
    """Top-level names in what `python -X importtime` says."""
    lines = (line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:"))
    return {line.partition(".")[0] for line in lines}


def test_help_answers_without_the_heavy_imports() -> None:
    done = python("-X", "importtime", "run.py", "--help")
    assert done.returncode == 0
    for expected in ("model=bilstm task=cls", "report_cls", "optimizer.lr", "resume=FOLDER"):
        assert expected in done.stdout
    imported = modules_imported(done.stderr)
    assert "hydra" in imported
    assert not imported & set(HEAVY)


NOT_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_help_answers_in_a_locale_that_is_not_utf_8() -> None:
    done = python("run.py", "--help", **NOT_UTF_8)
    assert done.returncode == 0, done.stderr
    assert f'text="{"屏幕很清晰".encode("unicode_escape").decode()}"' in done.stdout


@pytest.mark.slow
def test_a_network_is_described_in_a_locale_that_is_not_utf_8() -> None:
    done = python("run.py", "-cn", "describe", "model=gru", **NOT_UTF_8)
    assert done.returncode == 0, done.stderr
    assert "backend=auto runs it on" in done.stdout


def test_shell_completion_answers_without_the_heavy_imports() -> None:
    done = python("-X", "importtime", "run.py", "-sc", "query=bash", COMP_LINE="python run.py model=", COMP_POINT="20")
    assert set(done.stdout.split()) >= {f"model={model}" for model in MODELS}
    assert not modules_imported(done.stderr) & set(HEAVY)
    line = "python run.py task.pooling=m"
    done = python("-X", "importtime", "run.py", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.stdout.split() == ["task.pooling=max", "task.pooling=max_mean", "task.pooling=mean"]
    assert not modules_imported(done.stderr) & set(HEAVY)


def test_the_whole_configuration_can_be_shown() -> None:
    done = python("run.py", "task=forecast", "model=gru", "optimizer.lr=0.5", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "lr: 0.5" in done.stdout
    assert "rnn_cells.GRU" in done.stdout


def test_the_script_itself_runs_and_fails_as_a_process_of_its_own(tmp_path: Path) -> None:
    done = python("run.py", *SMALL["cls"], "data.path=missing.csv", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert "missing.csv" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


MISTAKES = [
    (["lrr=1"], "lrr"),
    (["optimizer.lrr=1"], "Did you mean optimizer.lr?"),
    (["+optimizer.lrr=1", "data.path=never_read.csv"], "optimizer: Adam.__init__() got an unexpected"),
    (["scheduler.warmup=3"], "scheduler is null"),
    (["optimizer.lr=-1"], "optimizer.lr=-1.0 is not allowed: it must be above 0"),
    (["optimizer.lr=nan"], "optimizer.lr=nan is not allowed"),
    (["model.encoder.hidden_size=many"], "model.encoder.hidden_size"),
    (["model=nope"], "bilstm"),
    (["data.path=missing.csv"], "missing.csv"),
    (["data.path=never_read.csv", "data.target=T (degc)"], "Did you mean 'T (degC)' for 'T (degc)'?"),
    (["resume=nothing"], "nothing to resume from"),
    (
        ["model.encoder.backend=magic", "data.path=never_read.csv"],
        "model.encoder: backend must be one of auto, triton, cpu",
    ),
    (["task.quantiles=[0.1,0.9]", "data.path=never_read.csv"], "task.quantiles=[0.1, 0.9] is not allowed"),
    (["task.quantiles=[0.9,0.5]", "data.path=never_read.csv"], "must rise"),
    (["model=cell"], "model.encoder.cell._target_ is missing"),
    (["trainer.limit_train_batches=many"], "trainer.limit_train_batches"),
    (["data.path=a=b.csv"], "a=b.csv does not exist"),
    (["seed=99999999999999999999"], "seed=99999999999999999999 is not allowed"),
    (["data.split_seed=4294967296"], "data.split_seed"),
    (["trainer.max_steps=0"], "trainer.max_steps=0 is not allowed: it must be at least 1, or -1"),
    (["trainer.devices=banana", "data.path=never_read.csv"], "devices"),
    (["logger._target_=pytorch_lightning.loggers.CSVLogger"], "'default_hp_metric'; ~GROUP.OPTION"),
    (
        ["model.encoder.backend=cpu", "trainer.precision=bf16-mixed", "data.path=never_read.csv"],
        "model.encoder.backend: backend 'cpu' can't run",
    ),
    ([f"hydra.run.dir={ROOT / 'run.py'}"], "File exists: "),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words[0] for words, _ in MISTAKES])
def test_a_users_mistake_is_one_message_and_exit_code_1(
    words: list[str], expected: str, lab: Lab, tmp_path: Path
) -> None:
    sample_climate(1, 0).iloc[:0].to_csv(tmp_path / "never_read.csv", index=False)  # without a row: an error, if read
    outcome = lab.run(*SMALL["forecast"], *words, folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert expected in outcome.output
    assert outcome.output.count("error: ") == 1, outcome.output
    assert "Traceback" not in outcome.output
    assert len(outcome.output.splitlines()) <= 12


@pytest.mark.parametrize("precision", ["bf16", "64-true"])
def test_a_trial_runs_in_other_precisions(precision: str, lab: Lab, tmp_path: Path) -> None:
    words = [f"trainer.precision={precision}", "trainer.fast_dev_run=true"]
    outcome = lab.run(*SMALL["cls"], *words, folder=tmp_path)
    assert outcome.code == 0, outcome.output


QUOTED = [
    ("data.text_column=内容", "data.text_column='内容'", False),
    ("data.path=/tmp/我的 数据/评:论[1],2.csv", "data.path='/tmp/我的 数据/评:论[1],2.csv'", False),
    ("data.path='我的 数据'", "data.path='我的 数据'", False),
    ('data.path="我的 数据"', 'data.path="我的 数据"', False),
    ("data.path=it's 文", "data.path='it\\'s 文'", False),
    ("data.path=plain.csv", "data.path=plain.csv", False),
    ("data.separator=;", "data.separator=';'", False),
    ("data.separator=';'", "data.separator=';'", False),
    ("seed=1", "seed=1", False),
    ("data.features=[温度,压力, rain]", "data.features=['温度','压力', rain]", False),
    ("data.features=['温度',压力]", "data.features=['温度','压力']", False),
    ("data.wind={speed: 风速,direction: 风向}", "data.wind={speed: '风速',direction: '风向'}", False),
    ("data.path=~/my.csv", f"data.path={Path.home()}/my.csv", False),
    ("data.path=~/文.csv", f"data.path='{Path.home()}/文.csv'", False),
    ("data.path=/tmp/t.csv,/tmp/文.csv", "data.path=/tmp/t.csv,'/tmp/文.csv'", True),
    ("data.features=[温度],[温度,压力]", "data.features=['温度'],['温度','压力']", True),
    ("data.features=[T (degC),p]", "data.features=['T (degC)',p]", False),
    ("data.wind={speed: wv (m/s),direction: wd}", "data.wind={speed: 'wv (m/s)',direction: wd}", False),
    ("data.path=my data (1).csv,b.csv", "data.path='my data (1).csv',b.csv", True),
    ("data.path=my data (1).csv,b.csv", "data.path='my data (1).csv,b.csv'", False),
    ("data.path=a,b.csv", "data.path='a,b.csv'", False),
    ("data.target=choice(a,b)", "data.target=choice(a,b)", True),
    ("data.target=label,topic", "data.target=label,topic", True),
    ("data.time_column=[date,time (UTC)]", "data.time_column=[date,'time (UTC)']", False),
    ("data.time_column=time (UTC)", "data.time_column='time (UTC)'", False),
    ("hydra.run.dir=outputs/${now:%Y} (1)", "hydra.run.dir='outputs/${now:%Y} (1)'", False),
    ("hydra.run.dir=outputs/${now:%Y}", "hydra.run.dir=outputs/${now:%Y}", False),
    ("run=[/tmp/a (1),/tmp/b]", "run=['/tmp/a (1)',/tmp/b]", False),
    ("run=[/tmp/a,/tmp/b]", "run=[/tmp/a,/tmp/b]", False),
    ("resume=null", "resume=null", False),
    ("task.quantiles=[0.1,0.5]", "task.quantiles=[0.1,0.5]", False),
    ("optimizer.lr=1e-3,1e-2", "optimizer.lr=1e-3,1e-2", True),
]


@pytest.mark.parametrize(("typed", "quoted", "sweeping"), QUOTED, ids=[typed for typed, _, _ in QUOTED])
def test_what_hydra_does_not_take_as_typed_is_quoted_by_element(typed: str, quoted: str, sweeping: bool) -> None:
    assert run.quoted(typed, sweeping) == quoted
    override = OverridesParser.create().parse_override(quoted)
    assert override.is_sweep_override() == sweeping


SIGNS = st.text(
    st.sampled_from("ab1 ()[]{}'\"\\,=:~$#%&;!@^|?*.-/文") | st.characters(codec="utf-8", categories=["L", "P"])
)
WORDS = st.sampled_from(
    ["true", "False", "010", "1_000", "1e3", "C:\\my data\\", "=1", "null2", "a b", " a", "\\'", "''a"]
)


@settings(max_examples=150, deadline=None)
@given(typed=SIGNS | WORDS, key=st.sampled_from(["data.path", "+data.text_column", "data.time_format", "title"]))
def test_a_string_reaches_the_run_as_it_was_typed_and_is_quoted_once(typed: str, key: str) -> None:
    is_quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
    if is_quoted or typed.lower() == "null" or typed.startswith(("~/", "~\\")):
        return
    once = run.quoted(f"{key}={typed}")
    assert str(OverridesParser.create().parse_override(once).value()) == typed
    assert run.quoted(once) == once


def test_only_the_first_job_of_a_process_is_kept_from_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    gc.disable()
    for _ in range(3):
        run.collect_garbage()
        assert gc.isenabled()
    assert len(frozen) == 1


@pytest.mark.parametrize("words", [["optimizer.lrr=1"], ["optimizer.lr=-1"], ["data.path=missing.csv"]])
def test_debug_shows_the_stack_trace_of_a_mistake(words: list[str], lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*SMALL["forecast"], *words, "debug=true", folder=tmp_path)
    assert outcome.code == 1
    assert "Traceback" in outcome.output


def test_a_diverging_run_stops_with_a_remedy_and_says_so_in_its_folder(lab: Lab, tmp_path: Path) -> None:
    # Each step makes about -9 times as much of the weights.
    explosive = ["callbacks=none", "optimizer=sgd", "optimizer.lr=10", "optimizer.weight_decay=1"]
    folder = tmp_path / "run"
    outcome = lab.run(*SMALL["forecast"], *explosive, "trainer.max_epochs=30", f"hydra.run.dir={folder}")
    assert outcome.code == 1
    assert re.search(
        r"the (training loss|gradient's norm) became (nan|inf) at step \d+; nothing was updated", outcome.output
    )
    assert "optimizer.lr" in outcome.output
    assert "Traceback" not in outcome.output
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "failed"
    assert not (folder / "metrics.json").exists()


def write_texts(path: Path, encoding: str = "utf-8") -> Path:
    generator = np.random.default_rng(0)
    words = {"好评": ["很好", "喜欢", "满意", "不错"], "差评": ["太差", "退货", "失望", "破损"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["内容", "类别"])
        for number in range(120):
            label = ["好评", "差评"][number % 2]
            writer.writerow(["，".join(generator.choice(words[label], 3)) + f"{number}", label])
    return path


OWN_TEXTS = ("data=cls", "data.tokenizer=char", "data.batch_size=16", "trainer.max_epochs=1")


def cls_words() -> list[str]:
    return [word for word in SMALL["cls"] if not word.startswith("data")]


@pytest.mark.slow
def test_own_texts_train_in_a_locale_that_is_not_utf_8(tmp_path: Path) -> None:
    rows = [f"{['好评', '差评'][number % 2]},很好{number}" for number in range(100)]
    (tmp_path / "texts.csv").write_text(
        "\n".join(["cat,review", *rows, *(f"少见,不错{number}" for number in range(3)), ""]), encoding="utf-8"
    )
    words = (*cls_words(), *OWN_TEXTS, f"data.path={tmp_path}/texts.csv", f"hydra.run.dir={tmp_path}/run")
    cache = {"RNN_LAB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = python("run.py", *words, **NOT_UTF_8, **cache)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout + done.stderr
    assert "split has no row of ['少见']" in (tmp_path / "run" / "run.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("quoted", [pytest.param(True, marks=pytest.mark.slow), False], ids=["quoted", "as typed"])
def test_own_texts_train_under_a_path_with_spaces_and_chinese(quoted: bool, lab: Lab, tmp_path: Path) -> None:
    path, folder = write_texts(tmp_path / "我的 数据" / "评 论.csv"), tmp_path / "运行 结果"
    own = {"data.path": path, "data.text_column": "内容", "data.target": "类别", "hydra.run.dir": folder}
    words = [f"{key}='{value}'" if quoted else f"{key}={value}" for key, value in own.items()]
    outcome = lab.run(*cls_words(), *OWN_TEXTS, *words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert not metrics["data"].startswith("sample_")
    assert {row["class"] for row in metrics["per_class"]} == {"好评", "差评"}
    assert len(pd.read_parquet(folder / "predictions.parquet")) == 12
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    assert report["rows_read"] == 120
    assert report["source"].endswith("评 论.csv")


def test_own_readings_with_other_columns_train(lab: Lab, tmp_path: Path) -> None:
    times = pd.date_range("2020-03-01", periods=900, freq="h")
    degrees = 10 + 5 * np.sin(np.arange(900) * np.pi / 12) + np.random.default_rng(0).normal(size=900)
    table = pd.DataFrame({"when": times.strftime("%Y/%m/%d %H:%M"), "degrees": degrees.round(2), "noise": 1.5})
    table.to_csv(tmp_path / "my readings.csv", index=False)
    own = ["data.time_column=when", "data.time_format='%Y/%m/%d %H:%M'", "data.target=degrees", "data.wind=null"]
    own += ["data.features=[degrees, noise]", "data.split=fraction", "data.lookback=2d", "data.horizon=1d"]
    words = [word for word in SMALL["forecast"] if not word.startswith("data")]
    words += ["data.path=my readings.csv", *own, "data.stride=5", "trainer.max_epochs=1", "hydra.run.dir=my run"]
    outcome = lab.run(*words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    table = pd.read_parquet(tmp_path / "my run" / "predictions.parquet")
    assert table["step"].max() == 24
    assert set(table["target"]) <= set(degrees.round(2))


def test_a_file_in_another_encoding_is_explained(lab: Lab, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "gbk.csv", encoding="gb18030")
    columns = ["data.text_column='内容'", "data.target='类别'"]
    outcome = lab.run(*cls_words(), *OWN_TEXTS, f"data.path={path}", *columns, folder=tmp_path)
    assert outcome.code == 1
    assert "data.encoding=gb18030" in outcome.output
    assert "gbk.csv" in outcome.output
    assert "Traceback" not in outcome.output


def test_two_runs_started_at_once_have_folders_of_their_own(lab: Lab, tmp_path: Path) -> None:
    words = [*SMALL["cls"], "trainer.fast_dev_run=true"]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda seed: lab.run(*words, f"seed={seed}", folder=tmp_path), (0, 1)))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    finished = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("outputs/*/*/metrics.json")]
    assert sorted(metrics["seed"] for metrics in finished) == [0, 1]


@pytest.mark.slow
def test_scipy_signal_is_spared_at_the_start_and_there_for_whoever_wants_it() -> None:
    program = """
import sys
from run import without_scipy_signal
with without_scipy_signal():
    import runs.job
assert "scipy.signal" not in sys.modules
import scipy.signal
assert scipy.signal.find_peaks([0, 1, 0])[0].tolist() == [1]
with without_scipy_signal():  # once it is there, it stays
    assert scipy.signal is sys.modules["scipy.signal"]
assert scipy.signal is sys.modules["scipy.signal"]
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("target", ["lable", "label"])
def test_a_column_that_is_not_there_is_told_before_anything_heavy_is_imported(target: str, tmp_path: Path) -> None:
    (tmp_path / "my data (1).csv").write_text("label,review\n", encoding="utf-8")
    words = [f"data.path={tmp_path}/my data (1).csv", "data.text_column=review", f"data.target={target}"]
    program = (
        "import sys, run\n"
        f"sys.argv = ['run.py', 'task=cls', *{words!r}, 'hydra.run.dir={tmp_path}/run', 'trainer=cpu']\n"
        "run.import_module = lambda name: sys.exit('went on')\n"
        "try: run.main()\n"
        "finally: print(*sys.modules)"
    )
    done = python("-c", program)
    told = "line 1: columns ['lable'] are missing; found ['label', 'review']. Did you mean 'label' for 'lable'?"
    assert (told if target == "lable" else "went on") in done.stderr, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY)


def test_nothing_heavy_is_imported_before_the_configuration_is_found_to_be_right() -> None:
    program = "import sys, run, runs.sweep; assert not {'torch', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0
