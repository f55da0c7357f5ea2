"""What the configuration may hold: names, types, ranges and meanings of all options.

The dataclasses are stored in Hydra's group `schema`; the files in `conf/` build on them, so that a misspelt name or
a wrong type fails while the configuration is composed. Ranges are checked by `runs.checks`, before any data is read.
Nothing here imports more than hydra and omegaconf: composing, `--help` and shell completion stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

OWN = ("rnn_cells", "tasks", "datamodules")
"""This project's packages that a `_target_` may name."""


class ConfigError(ValueError):
    """The configuration asks for something impossible; the message names the key and what is allowed."""


def option(
    default: Any,
    help: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with its meaning and range: `least <= value <= most`, `above < value`, or one of `choices`."""
    limits = {"least": least, "above": above, "most": most, "choices": choices}
    metadata = {"help": help, **{name: limit for name, limit in limits.items() if limit is not None}}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


# omegaconf reads annotations at run time and, on Python 3.10 and 3.11, wants Optional spelt out.
# ruff: noqa: UP045

LARGEST_SEED = 2**32 - 1  # NumPy's and scikit-learn's generators take no larger one
CLOCK = "days:hours:minutes:seconds, as 00:12:00:00"
DURATION = "a duration such as 5d, 48h or 10min, or 24mo, 2y, 20bd or 48rows where step is of that kind"
SEPARATOR = "between columns: one character, or tab; if not given, a tab in a file called .tsv, else a comma"
QUOTE = "around fields that hold a separator; none: quotes are characters like any others"
ESCAPE = 'put before a character that is to be taken as it is, as in \\"'
COMMENT = "lines that begin with it are left out, as with #"
HEADER = "whether the first row names the columns; false: they are called 1, 2, 3 and so on, or as names says"
NAMES = "the columns' names, if there is no header"
SKIP_LINES = "lines left out before the header"
SKIP_AFTER_HEADER = "rows left out after the header, such as one of units"
TIME_FORMAT = (
    "how a time is written: as strptime has it, iso8601, epoch_s (_ms, _us, _ns); %H:%M - %H:%M is an interval"
)


@dataclass
class EncoderConfig:
    """A recurrent encoder: `rnn_cells.RNN`, `GRU`, `LSTM`, `BiLSTM`."""

    _target_: str = MISSING
    _partial_: bool = True
    hidden_size: int = option(128, "features per direction", least=1)
    num_layers: int = option(1, "stacked layers", least=1)
    bias: bool = option(True, "whether the cells have bias terms")
    dropout: float = option(0.0, "between layers", least=0, most=1)
    bidirectional: bool = option(False, "read each sequence backwards, too")
    recurrent_dropout: float = option(0.0, "on the recurrent weights, alike for a whole batch", least=0, most=1)
    init: str = option(
        "torch",
        "torch: as torch.nn draws weights; orthogonal: such recurrent matrices, forget bias 1",
        choices=("torch", "orthogonal"),
    )
    backend: str = option("auto", "implementation of the scan: auto, or the name of one that must run")


@dataclass
class GRUEncoderConfig(EncoderConfig):
    """A GRU."""

    reset_after: bool = option(False, "reset gate after the matrix product, as torch.nn.GRU has it")


@dataclass
class CellEncoderConfig(EncoderConfig):
    """`rnn_cells.Recurrent` around a cell of your own."""

    cell: Any = option(MISSING, "the class, as cell._target_=my_cells.MinGRU, with trust=[my_cells]")


@dataclass
class ModelConfig:
    """An architecture."""

    name: str = MISSING
    encoder: Any = MISSING
    source_epochs: int = option(20, "epochs this architecture was trained in the source report", least=1)


@dataclass
class RNNModelConfig(ModelConfig):
    """RNN, LSTM or BiLSTM."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass
class GRUModelConfig(ModelConfig):
    """GRU."""

    encoder: GRUEncoderConfig = field(default_factory=GRUEncoderConfig)


@dataclass
class CellModelConfig(ModelConfig):
    """A cell of your own."""

    encoder: CellEncoderConfig = field(default_factory=CellEncoderConfig)


@dataclass
class EncoderlessModelConfig(ModelConfig):
    """Trained like the others, without recurrence."""


@dataclass
class BaselineModelConfig(ModelConfig):
    """Fitted once, without an encoder: see `tasks.Baseline`."""

    encoder: Any = None
    baseline: Any = MISSING
    for_task: str = MISSING  # the task that it can do


@dataclass
class EmbeddingConfig:
    """Token vectors."""

    _target_: str = "tasks.TokenEmbedding"
    _partial_: bool = True
    embedding_dim: int = option(128, "features per token", least=1)
    dropout: float = option(0.0, "on token vectors", least=0, most=1)
    token_dropout: float = option(0.0, "share of tokens taken for unknown in training", least=0, most=1)


@dataclass
class IdentityConfig:
    """Inputs that are numbers already."""

    _target_: str = "tasks.Identity"
    _partial_: bool = True


BETTER = {"val/loss": "min", "val/mae": "min", "val/f1": "max", "val/accuracy": "max"}
"""Whether less or more of a score is better."""
MODE = "whether less or more of it is better, if it is no score of this project"
MONITOR = "the validation score that picks the best epoch and stops early"
POOLINGS = ("last", "mean", "max", "max_mean", "attention")


@dataclass
class TaskConfig:
    """What is learned."""

    _target_: str = MISSING
    name: str = MISSING
    inputs: Any = MISSING
    pooling: str = option("last", "how a sequence's steps become one vector", choices=POOLINGS)
    dropout: float = option(0.0, "on the pooled vector", least=0, most=1)
    members: int = option(1, "networks that learn side by side, whose answers are averaged", least=1, most=100)
    monitor: str = option("val/loss", MONITOR)
    mode: str = option("min", MODE, choices=("min", "max"))


@dataclass
class NgramsConfig:
    """Votes of hashed n-grams beside the network: see `tasks.NgramVotes`."""

    characters: int = option(0, "longest n-gram of characters; 0 for none", least=0, most=8)
    words: int = option(0, "longest n-gram of words; 0 for none", least=0, most=4)
    bits: int = option(18, "n-grams share 2^bits rows of weights", least=8, most=26)
    dropout: float = option(0.5, "share of n-grams left out in training", least=0, most=1)
    scale: float = option(30.0, "of the votes: the larger, the faster they learn", above=0)


@dataclass
class ClassificationConfig(TaskConfig):
    """Text classification."""

    inputs: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    monitor: str = option("val/f1", MONITOR, choices=("val/f1", "val/accuracy", "val/loss"))
    mode: str = option("max", MODE, choices=("min", "max"))
    label_smoothing: float = option(0.0, "share of a target spread over all classes", least=0, most=1)
    consistency: float = option(
        0.0, "weight of the distance between two answers under different dropout (R-Drop); 0: none", least=0
    )
    ngrams: NgramsConfig = field(default_factory=NgramsConfig)


@dataclass
class ForecastingConfig(TaskConfig):
    """Multi-step forecasting."""

    inputs: IdentityConfig = field(default_factory=IdentityConfig)
    monitor: str = option("val/mae", MONITOR, choices=("val/mae", "val/loss"))
    criterion: str = option("mae", "training loss", choices=("mae", "mse", "huber"))
    base: str = option(
        "last",
        "what the network corrects: the training mean, the window's last value, the climatology",
        choices=("mean", "last", "climatology"),
    )
    quantiles: list[float] = option(
        [], "probability levels to forecast, rising, 0.5 among them; none: one value", above=0, most=0.999
    )
    tracking: float = option(
        0.0,
        "how far each observed value moves the quantiles during the test, in standard deviations; predict keeps them",
        least=0,
        most=1,
    )


@dataclass
class DataConfig:
    """A data set, and how it becomes batches."""

    _target_: str = MISSING
    name: str = MISSING
    path: Optional[str] = option(
        None, "your CSV file (plain, compressed or zipped; all.zip/train.csv of several) instead of the data set's own"
    )
    files: list[str] = option([], "names under which the data set is looked for in RNN_LAB_DATA and the cache")
    urls: list[str] = option([], "where it is downloaded from, tried in order")
    sha256: dict[str, str] = option({}, "known files and their hashes")
    on_missing: str = option(
        "sample",
        "if the data can be neither found nor downloaded: use the built-in sample, or stop",
        choices=("sample", "error"),
    )
    encoding: str = option("utf-8", "of the file: utf-8, gb18030, latin-1, …")
    encoding_errors: str = option(
        "strict", "bytes that the encoding can't read: stop, or read them as U+FFFD", choices=("strict", "replace")
    )
    separator: Optional[str] = option(None, SEPARATOR)
    quote: str = option('"', QUOTE)
    escape: Optional[str] = option(None, ESCAPE)
    comment: Optional[str] = option(None, COMMENT)
    header: bool = option(True, HEADER)
    names: list[str] = option([], NAMES)
    skip_lines: int = option(0, SKIP_LINES, least=0)
    skip_after_header: int = option(0, SKIP_AFTER_HEADER, least=0)
    allow_loss: bool = option(
        False, "use a training file even if over 10% of its rows are lost: empty, off the grid, …"
    )
    val_fraction: float = option(0.1, "share for validation (of a series with split=fraction)", above=0, most=0.9)
    test_fraction: float = option(0.1, "share for the test (of a series with split=fraction)", above=0, most=0.9)
    batch_size: int = option(128, "examples per step", least=1)
    num_workers: int = option(0, "processes that prepare batches", least=0)
    seed: int = option(0, "of the order of batches", least=0, most=LARGEST_SEED)


@dataclass
class TextConfig(DataConfig):
    """A CSV of texts and labels."""

    val_path: Optional[str] = option(None, "file of the validation split, if it has one of its own")
    test_path: Optional[str] = option(None, "file of the test split, if it has one of its own")
    text_column: str = option("review", "column with the text")
    target: str = option("cat", "column with the label")
    unlabelled: str = option("error", "rows without a label: stop, or leave them out", choices=("error", "drop"))
    small_classes: str = option(
        "error",
        "classes with fewer rows than there are splits: stop, leave them out, or merge them into one class, `other`",
        choices=("error", "drop", "merge"),
    )
    tokenizer: str = option("jieba", "how texts are cut", choices=("jieba", "char", "whitespace"))
    max_length: int = option(256, "tokens kept of a text", least=1)
    min_frequency: int = option(2, "a token must occur so often in the training split to be known", least=1)
    max_vocabulary: int = option(50000, "known tokens at most", least=3)
    split: str = option(
        "stratified",
        "the test split: drawn by class, or every row whose number 5 divides",
        choices=("stratified", "index%5"),
    )
    split_seed: int = option(0, "of the stratified split", least=0, most=LARGEST_SEED)
    sample_size: int = option(4000, "rows of the built-in sample", least=200)
    cache_dir: Optional[str] = option(None, "where tokens are cached; a folder of this user if not given")
    limit: Optional[int] = option(None, "use only so many rows, for a trial", least=50)
    english: dict[str, str] = option({}, "labels in English, for figures where no font shows Chinese")


@dataclass
class SeriesConfig(DataConfig):
    """A CSV of timestamped readings."""

    time_column: Any = option(
        "Date Time",
        "column with the time, or several: [date,time], joined by a blank; null: none, rows are in order, step is rows",
    )
    time_format: str = option("%d.%m.%Y %H:%M:%S", TIME_FORMAT)
    target: str = option("T (degC)", "column to forecast")
    features: list[str] = option([], "columns the model reads")
    wind: Optional[dict[str, str]] = option(None, "columns `speed` and `direction`; adds features wind_x and wind_y")
    calendar: bool = option(True, "add sine and cosine of time of day and of year")
    decimal: str = option(".", "decimal mark of the numbers", choices=(".", ","))
    missing_values: list[float] = option([-9999.0], "numbers that mean: no reading")
    missing_words: list[str] = option([], "further words that mean: no reading")
    missing: str = option(
        "drop",
        "windows with empty cells or absent rows in their inputs: leave them out, or repeat the last reading",
        choices=("drop", "ffill"),
    )
    fill_limit: int = option(3, "steps that ffill may bridge", least=1)
    duplicates: str = option(
        "identical",
        "rows of the same time: if identical, keep one, else stop; or always the first, last, mean, or stop",
        choices=("identical", "first", "last", "mean", "error"),
    )
    step: str = option(
        "1h",
        "time between two steps of the model: 1h, 10min, 1d, …; by the calendar 1mo, 3mo, 1y; business days 1bd; or "
        "rows, equally spaced whatever their times",
    )
    resample: str = option(
        "sample",
        "from a finer file: the reading at each step, the mean over it, or every k-th row",
        choices=("sample", "mean", "rows"),
    )
    round_times: Optional[str] = option(
        None, "round times to whole 1h, 10min and so on, where clocks are inexact by seconds; if not given, as they are"
    )
    min_share: Optional[float] = option(
        0.5, "share of a step's readings that its mean needs; with fewer it is missing", least=0, most=1
    )
    bin_offset: Optional[str] = option(
        None, "how long after midnight (of Monday, for weeks) the steps of means begin, such as 6h"
    )
    lookback: str = option("5d", f"what the model sees: {DURATION}")
    horizon: str = option("2d", f"what it forecasts: {DURATION}")
    stride: int = option(1, "steps from one window to the next", least=1)
    season: str = option("1d", f"period of the seasonal naive forecast: {DURATION}")
    split: str = option("date", "chronological, by date or by fraction", choices=("date", "fraction"))
    val_from: Optional[str] = option("2015-01-01", "start of validation (split=date), or how long before the test: 1y")
    test_from: Optional[str] = option(
        "2016-01-01", "start of the test (split=date), on the clock of the file: 2016-01-01T06:00"
    )
    test_until: Optional[str] = option(
        None, "end of the test (split=date), or how long it is: 1y; the file's end if not given"
    )
    reach_back: bool = option(
        True, "a window belongs to the split of its targets; false: its inputs must lie in it, too"
    )
    expected: dict[str, Any] = option({}, "rows, first and last time of known files")
    sample_years: int = option(3, "years of the built-in sample", least=3)
    sample_seed: int = option(0, "of the built-in sample", least=0, most=LARGEST_SEED)


@dataclass
class OptimizerConfig:
    """An optimizer of torch.optim."""

    _target_: str = MISSING
    _partial_: bool = True
    lr: float = option(1e-3, "learning rate", above=0, most=10)
    weight_decay: float = option(0.0, "L2 penalty (Adam, SGD) or decoupled decay (AdamW)", least=0, most=1)
    fused: Optional[bool] = option(None, "update in one pass; if not given, wherever the precision allows it")


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam or AdamW."""

    betas: list[float] = option([0.9, 0.999], "decay of the running moments", least=0, most=1)
    eps: float = option(1e-8, "added to the denominator", above=0)


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: float = option(0.9, "of the running gradient", least=0, most=1)
    nesterov: bool = option(False, "Nesterov momentum")


@dataclass
class SchedulerConfig:
    """A learning rate schedule over the steps of the training."""

    _target_: str = MISSING
    _partial_: bool = True
    warmup: float = option(0.05, "fraction of the steps in which the rate rises", least=0, most=1)


@dataclass
class CosineConfig(SchedulerConfig):
    """Half a cosine."""

    final: float = option(0.01, "fraction of the rate that is left at the end", least=0, most=1)


@dataclass
class TrainerConfig:
    """Arguments of `pytorch_lightning.Trainer`."""

    accelerator: str = option("auto", "where to train: auto, cpu, gpu or mps")
    devices: Any = option("auto", "how many devices, or which")
    strategy: str = option("auto", "how several devices share a training: auto, ddp, …")
    num_nodes: int = option(1, "machines", least=1)
    precision: str = option("32-true", "of the arithmetic: 32-true, bf16-mixed, 64-true, …")
    max_epochs: int = option(15, "epochs at most", least=1)
    max_steps: int = option(-1, "steps at most; -1 for no limit", least=-1)
    gradient_clip_val: Optional[float] = option(1.0, "largest norm of the gradient", above=0)
    fast_dev_run: Any = option(False, "true: one batch of everything, to see that it works; or how many", least=0)
    limit_train_batches: Any = option(1.0, "fraction or number of batches per epoch", above=0)
    limit_val_batches: Any = option(1.0, "the same for validation", least=0)
    limit_test_batches: Any = option(1.0, "the same for the test", above=0)
    log_every_n_steps: int = option(50, "steps between two points of a curve", least=1)
    deterministic: bool = option(False, "insist on deterministic algorithms")
    enable_progress_bar: bool = option(True, "show a progress bar")
    threads: Optional[int] = option(None, "CPU threads of the arithmetic; all cores if not given", least=1, most=4096)
    extra: dict[str, Any] = option({}, "further arguments of the Trainer: +trainer.extra.profiler=simple")


@dataclass
class ExtraTrainerConfig:
    """Further arguments of `pytorch_lightning.Trainer`, each added as `+trainer.extra.name=value`."""

    accumulate_grad_batches: int = option(1, "batches whose gradients make one step", least=1)
    benchmark: Optional[bool] = option(None, "let cuDNN look for the fastest algorithm")
    check_val_every_n_epoch: Optional[int] = option(
        1, "epochs from one validation to the next; null: val_check_interval counts on over epochs", least=1
    )
    detect_anomaly: bool = option(False, "find the operation whose gradient is no number (slow)")
    gradient_clip_algorithm: Optional[str] = option(
        None, "clip the gradient's norm, or each of its values", choices=("norm", "value")
    )
    inference_mode: bool = option(True, "evaluate in torch.inference_mode; false: in torch.no_grad")
    max_time: Any = option(None, f"time of training at most: {CLOCK}, or {{hours: 12}}")
    min_epochs: Optional[int] = option(None, "epochs at least, whatever early stopping says", least=1)
    min_steps: Optional[int] = option(None, "steps at least, whatever early stopping says", least=1)
    overfit_batches: Any = option(
        0.0, "fraction or number of batches of training and validation, the same in every epoch", least=0
    )
    profiler: Any = option(
        None, "what takes time: fit-profile.txt in the run folder", choices=("simple", "advanced", "pytorch")
    )
    reload_dataloaders_every_n_epochs: int = option(0, "epochs after which the loaders are made anew", least=0)
    sync_batchnorm: bool = option(False, "share the statistics of batch norm layers among processes")
    val_check_interval: Any = option(
        None, f"batches, or fraction of an epoch, from one validation to the next, or time: {CLOCK}", above=0
    )


UNAVAILABLE = {
    "barebones": "a run needs its scores and its checkpoints",
    "callbacks": "callbacks.extra takes further ones",
    "default_root_dir": "hydra.run.dir=FOLDER chooses the run folder",
    "enable_autolog_hparams": "the run logs its options itself; logger=none logs nothing",
    "enable_checkpointing": "a run keeps its best and its last weights; trainer.fast_dev_run=true keeps none",
    "enable_model_summary": "python run.py -cn describe shows the layers",
    "limit_predict_batches": "python run.py -cn predict makes predictions",
    "logger": "choose logger=tensorboard or logger=none",
    "model_registry": "a run keeps its weights in its own folder",
    "num_sanity_val_steps": "trainer.fast_dev_run=true tries one batch of everything",
    "plugins": "the run writes its checkpoints itself; trainer.precision and trainer.strategy choose the others",
    "use_distributed_sampler": "the data modules share the batches out among processes themselves",
}
"""Arguments of `pytorch_lightning.Trainer` that no run can set, each with what to do instead."""


@dataclass
class EarlyStoppingConfig:
    """When to stop before max_epochs."""

    patience: int = option(3, "epochs without improvement of task.monitor", least=0)
    min_delta: float = option(0.0, "smallest change of task.monitor that counts as improvement", least=0)


@dataclass
class CallbacksConfig:
    """What watches a training."""

    early_stopping: Optional[EarlyStoppingConfig] = None
    averaging: Optional[float] = option(
        None,
        "decay per step of a running average of the weights, which is then validated and kept",
        above=0,
        most=0.9999,
    )
    resume_every_n_steps: int = option(200, "steps between two resume points inside an epoch", least=1)
    extra: list[Any] = option([], "further Lightning callbacks, each with its _target_")


@dataclass
class Config:
    """A training run."""

    task: TaskConfig = MISSING
    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: Optional[SchedulerConfig] = None
    trainer: TrainerConfig = MISSING
    callbacks: CallbacksConfig = MISSING
    logger: Any = None
    seed: int = option(
        0, "of weights, batch order and dropout; data.split_seed decides the split", least=0, most=LARGEST_SEED
    )
    score_on: str = option(
        "test", "the split that is scored at the end: val while choosing between settings", choices=("test", "val")
    )
    resume: Optional[str] = option(None, "run folder of an interrupted run to continue")
    reuse: Optional[str] = option(
        None, "folder of runs: a finished one of the same configuration is copied instead of trained again"
    )
    escape_formulas: bool = option(False, "CSV files: put ' before texts that a spreadsheet would compute, as =1+1")
    trust: list[str] = option([], "modules of your own whose classes a _target_ may name")
    debug: bool = option(False, "show the stack trace of an error")


@dataclass
class DescribeConfig(Config):
    """What a run would be made of, or what one has learned to remember."""

    run: Any = option(None, "run folder to describe, or several: [folder, folder]; none: what the options ask for")
    checkpoint: str = option("best", "best, last, or the path of a checkpoint")
    sequences: int = option(8, "of the test split: how many the memory of a run is averaged over", least=1)
    output: Optional[str] = option(None, "the memory's figure and numbers; figures/memory of the run if not given")


@dataclass
class BenchmarkConfig:
    """A comparison of our layers with torch.nn's."""

    cells: list[str] = option(
        [],
        "layers that are timed",
        choices=("lstm", "bilstm", "gru", "gru_after", "rnn", "lstm_ragged", "gru_ragged"),
    )
    shapes: list[list[int]] = option([], "each: steps, batch, input_size, hidden_size; if none, some for the device")
    modes: list[str] = option([], "what is timed", choices=("train", "infer"))
    backend: str = option("auto", "implementation of the scan")
    device: str = option("cpu", "cpu, cuda, or cuda:1 and so on")
    dtype: Optional[str] = option(
        None,
        "of the arithmetic; if not given float32, on a GPU tf32 (its products in TF32); bfloat16: by autocast",
        choices=("float32", "float64", "tf32", "bfloat16"),
    )
    threads: int = option(2, "CPU threads", least=1, most=4096)
    repeats: int = option(9, "alternating measurements, whose median counts", least=1)
    trainings: list[str] = option([], "tasks whose training epoch is timed", choices=("cls", "forecast"))
    batches: int = option(60, "batches of a training that are timed", least=1)


@dataclass
class ResultsConfig:
    """All studies, and the page of their results."""

    studies: dict[str, Any] = option({}, "by name: title, command, perhaps a note and a score of the source report")
    only: list[str] = option([], "names of the studies to run; all if not given")
    train: bool = option(True, "false: write the page from the runs that there are")
    folder: str = option("outputs/results", "where the studies' runs are")
    output: str = option("RESULTS.md", "the page")


@dataclass
class DocsConfig:
    """The page of all options."""

    output: str = option("docs/options.md", "the page")


@dataclass
class ReportConfig:
    """The page that compares runs."""

    runs: Any = option(MISSING, "a run folder, a sweep, a pattern of such, or a list")
    output: str = option("report.html", "the page")
    title: Optional[str] = option(None, "what stands above it; the names of the models if not given")


@dataclass
class PredictConfig:
    """Predictions of a trained run. What isn't given of the file's format is as it was in training."""

    run: str = option(MISSING, "folder of the run")
    input: Optional[str] = option(None, "CSV file (plain, compressed, zipped) of reviews or readings")
    text: Optional[str] = option(None, "a single review, instead of a file")
    output: Optional[str] = option(None, "file of the predictions: .csv or .parquet")
    overwrite: bool = option(False, "replace files that are there already")
    checkpoint: str = option("best", "best, last, or the path of a checkpoint")
    batch_size: int = option(256, "examples at once", least=1)
    threads: Optional[int] = option(None, "CPU threads of the arithmetic; all cores if not given", least=1, most=4096)
    encoding: Optional[str] = option(None, "of the input: utf-8, gb18030, latin-1, …")
    separator: Optional[str] = option(None, SEPARATOR)
    quote: Optional[str] = option(None, QUOTE)
    escape: Optional[str] = option(None, ESCAPE)
    comment: Optional[str] = option(None, COMMENT)
    header: Optional[bool] = option(None, HEADER)
    names: Optional[list[str]] = option(None, NAMES)
    skip_lines: Optional[int] = option(None, SKIP_LINES, least=0)
    skip_after_header: Optional[int] = option(None, SKIP_AFTER_HEADER, least=0)
    text_column: Optional[str] = option(None, "reviews: column with the text")
    target: Optional[str] = option(None, "reviews: column with the true label, to score the predictions by")
    explain: bool = option(False, "reviews: show what each word adds to the answer")
    explain_limit: int = option(100, "reviews: rows that are explained at most", least=1)
    time_column: Optional[str] = option(None, "readings: column with the time, or several: [date,time]")
    time_format: Optional[str] = option(None, f"readings: {TIME_FORMAT}")
    decimal: Optional[str] = option(None, "readings: decimal mark of the numbers", choices=(".", ","))
    missing_values: list[float] = option([], "readings: more numbers that mean: no reading")
    missing_words: Optional[list[str]] = option(
        None, "readings: words that mean: no reading, in place of those of the training"
    )
    allow_loss: bool = option(False, "readings: use a file even if over 10% of its rows are lost")
    columns: Any = option(
        {}, "readings: a column's name in training and in the input, where they differ: {training: input}"
    )
    every: Optional[str] = option(None, f"readings: time between forecasts, counted back from the last row: {DURATION}")
    max_age: Optional[str] = option(None, f"readings: how long ago the last complete lookback may end: {DURATION}")
    escape_formulas: bool = option(False, "CSV files: put ' before texts that a spreadsheet would compute, as =1+1")
    trust: list[str] = option([], "modules of your own whose classes a _target_ may name")
    debug: bool = option(False, "show the stack trace of an error")


SCHEMAS: dict[str, list[type]] = {
    "task": [ClassificationConfig, ForecastingConfig],
    "data": [TextConfig, SeriesConfig],
    "model": [RNNModelConfig, GRUModelConfig, CellModelConfig, EncoderlessModelConfig, BaselineModelConfig],
    "optimizer": [AdamConfig, SGDConfig],
    "scheduler": [SchedulerConfig, CosineConfig],
    "trainer": [TrainerConfig],
    "callbacks": [CallbacksConfig],
}
"""The schemas that the files of each group of `conf/` build on."""


PROGRAMS: dict[str, tuple[type, str]] = {
    "benchmark": (BenchmarkConfig, "runs.benchmark"),
    "describe": (DescribeConfig, "runs.describe"),
    "docs": (DocsConfig, "runs.docs"),
    "predict": (PredictConfig, "runs.predict"),
    "report": (ReportConfig, "runs.page"),
    "results": (ResultsConfig, "runs.results"),
}
"""What a configuration is for, by its name: its schema, and the module whose `run` takes it; any other is a run."""


def register() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    for schema in (Config, DescribeConfig):
        store.store(group="schema", name=schema.__name__, node=schema)
    for schema, _ in PROGRAMS.values():
        store.store(name=schema.__name__, node=schema)
    for schemas in SCHEMAS.values():
        for schema in schemas:
            store.store(group="schema", name=schema.__name__, node=schema)


def best_is(task: Mapping[str, Any]) -> str:
    """Whether the best of what a task monitors is its `min` or its `max`."""
    return BETTER.get(task["monitor"]) or str(task["mode"])
