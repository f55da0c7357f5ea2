"""The one entry point: compose the configuration with Hydra and hand over to `runs`.

Heavy imports stay inside functions, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import gc
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from datamodules.sources import DataError
from runs import checks, guard, schema


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def job(config: DictConfig) -> float | None:
    """One run of the configuration; a sweep calls this once per combination."""
    try:  # before anything heavy is imported
        check_resume(OmegaConf.select(config, "resume", default=None))
        if HydraConfig.get().mode == RunMode.RUN:  # in a sweep, each run fails for itself
            checks.validate(config)
            checks.check_header(config)
    except (schema.ConfigError, DataError) as error:
        leave(error, debug=bool(OmegaConf.select(config, "debug", default=False)))
    with without_scipy_signal():
        _, module = schema.PROGRAMS.get(HydraConfig.get().job.config_name or "", (schema.Config, "runs.job"))
        program = import_module(module)
    collect_garbage()
    try:
        return program.run(config)
    except Exception as error:  # here, before Hydra says of it what nobody can act on
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        leave(error, debug=bool(OmegaConf.select(config, "debug", default=False)))


def leave(error: Exception, debug: bool) -> NoReturn:
    """End with one message, if the error is a mistake of the user's; a bug, or with `debug` anything, is raised."""
    from runs.errors import explain

    if debug or (message := explain(error, sys.argv[1:])) is None:
        raise error
    sys.exit(f"error: {message}")


@contextmanager
def without_scipy_signal() -> Iterator[None]:
    """Keep torchmetrics from importing `scipy.signal`: it takes most of a second, for audio, which isn't used here."""
    if "scipy.signal" in sys.modules:
        yield
        return
    sys.modules["scipy.signal"] = stand_in = ModuleType("scipy.signal")
    stand_in.hamming = None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del sys.modules["scipy.signal"]  # whoever wants the real one gets it


def run_folder(resume: str | None, new: str) -> str:
    """The folder of a run; Hydra asks before it creates any.

    Raises:
        ConfigError: there is no run to resume.
    """
    if resume is not None and not (Path(resume) / "config.yaml").exists():
        raise schema.ConfigError(
            f"nothing to resume from: {resume or 'resume='} is not a run folder (it has no config.yaml)"
        )
    return new if resume is None else resume


def file_name(name: Any) -> str:
    """A name that has no folder in it: Hydra makes the run folder before any option is checked."""
    return re.sub(r"[^\w.+-]", "-", str(name))


def check_resume(resume: str | None) -> None:
    """Raise a ConfigError unless this is one run, and goes on in the folder that it resumes."""
    if resume is None:
        return
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        sweep = Path(resume).parent if (Path(resume) / "config.yaml").exists() else resume
        raise schema.ConfigError(
            f"resume={resume} continues a single run; to go on with a sweep, give its command again with "
            f"hydra.sweep.dir={sweep}"
        )
    if Path(resume).resolve() != (folder := Path(settings.runtime.output_dir).resolve()):
        raise schema.ConfigError(f"resume={resume} goes on in that folder: leave out hydra.run.dir={folder}")


def collect_garbage() -> None:
    """Turn garbage collection, off during the imports, on again; what exists by then is never scanned."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


HELP = """RNN Lab: recurrent networks from readable cells, for text classification and forecasting.

Examples
  python run.py model=bilstm task=cls                         categories of Chinese reviews
  python run.py model=lstm task=forecast optimizer.lr=3e-4    the next two days of temperature, from the last five
  python run.py -m model=rnn,gru,lstm,bilstm seed=0,1,2       a sweep, compared at its end
  python run.py -m task=cls model=tfidf_svm,bilstm            against simple baselines
  python run.py -cn predict run=FOLDER text="屏幕很清晰"       what a trained run makes of a review, or of a file:
  python run.py -cn predict run=FOLDER input=reviews.csv output=out.csv
  python run.py -cn describe model=gru                        layers, equations, cost and backend of a network
  python run.py -cn describe run=FOLDER                       the same of a run, and how far back it remembers
  python run.py -cn benchmark                                 our layers against torch.nn's
  python run.py -cn report runs=outputs/sweeps                a page that compares runs: report.html
  python run.py -cn results                                   all studies of the project, and RESULTS.md from them
  python run.py -cn docs                                      docs/options.md: every option and choice

Groups: choose with group=name
{groups}
  hydra/launcher, hydra/sweeper and others belong to Hydra: python run.py --hydra-help

Options: change with name=value
  seed                        of weights, batch order and dropout
  data.path                   your own CSV file; data.text_column, data.target, data.time_column name its columns
  data.batch_size, data.split_seed, task.pooling, task.dropout, optimizer.lr, optimizer.weight_decay
  model.encoder.hidden_size, model.encoder.num_layers, model.encoder.backend
  task.ngrams.characters, task.ngrams.words (votes of n-grams), task.quantiles (a forecast of probabilities)
  callbacks.averaging=0.999   keep a running average of the weights
  score_on=val                score the validation split, while choosing between settings
  trainer.max_epochs, trainer.fast_dev_run=true (one batch of everything, to see that it works)
  hydra.run.dir=FOLDER        the run folder; by default a new one in outputs/
  resume=FOLDER               continue an interrupted run
  debug=true                  show the stack trace of an error

python run.py --cfg job shows the whole configuration, with group=name and name=value applied."""


def help_text() -> str:
    """The answer to `--help`. Hydra's own composes everything first, which takes seconds."""
    from runs.completion import choices

    groups = ("task", "model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")
    found = {group: choices(group) for group in (*groups, "ablation")}
    return HELP.format(groups="\n".join(f"  {group:<12}{', '.join(names)}" for group, names in found.items()))


AS_TYPED = {option.name for option in fields(schema.PredictConfig) if option.type in ("str", "Optional[str]", "Any")}
"""Options of `predict` whose values are no expressions: a review, or a path, may hold any character."""


TYPES = ("str", "Optional[str]")
STRINGS = {
    *(f"{group}.{item.name}" for group, all in schema.SCHEMAS.items() for each in all for item in fields(each)
      if item.type in TYPES),
    *(item.name for each in (schema.Config, *(each for each, _ in schema.PROGRAMS.values())) for item in fields(each)
      if item.type in TYPES),
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
}  # fmt: skip
"""Options whose values are strings."""
STRING_OR_LIST = {"data.time_column", "run", "runs"}
"""Options whose values are strings unless they begin as a list does."""


def as_typed(argument: str) -> str:
    """An option of `AS_TYPED`, quoted so that Hydra's grammar changes nothing of its value; others as `quoted`."""
    key, equals, value = argument.partition("=")
    if not equals or key not in AS_TYPED:
        return quoted(argument)
    value = value if key == "text" else at_home(value)
    if key != "text" and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":  # as a training wants them
        value = value[1:-1]
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no reference to another option
    return f"{key}={in_quotes(value)}"


def in_quotes(value: str) -> str:
    """Any string as Hydra's grammar wants it."""
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return f"'{value}{value[len(value.rstrip(chr(92))) :]}'"  # backslashes at the end count double


def quoted(argument: str, sweeping: bool = False) -> str:
    """A value as Hydra's grammar wants it, in quotes where it would be refused or changed: data.text_column=内容 works.

    Of a list or a mapping, and of the choices of a sweep, each element is quoted for itself.
    """
    key, equals, value = argument.partition("=")
    argument = key + equals + (value := at_home(value))
    if not equals or _is_as_meant(argument, sweeping):
        return argument
    if _is_string(key, value):
        sweep = sweeping and not _is_as_meant(argument) and "," in value
        elements = re.findall(r"""'[^']*'|"[^"]*"|[^,]+""", value) if sweep else [value]
        quotes = (element if _is_as_meant(f"{key}={element}") else in_quotes(element) for element in elements)
        return f"{key}={','.join(quotes)}"
    if len(value) == 1 and not value.isalnum() and value not in "'\"\\":
        return f"{key}='{value}'"
    if not value or value[0] == "(":
        return argument
    ends = ",[]{}:" if value[0] in "[{" else "," if sweeping else ""
    elements = re.compile(rf"""'[^']*'|"[^"]*"|[^\n{re.escape(ends)}]+""")
    return f"{key}={elements.sub(lambda found: _quoted(found[0]), value)}"


def _is_string(key: str, value: str) -> bool:
    name = key.lstrip("+")
    return not value.startswith("[") if name in STRING_OR_LIST else name in STRINGS


def _is_as_meant(argument: str, sweeping: bool = False) -> bool:
    """Whether Hydra takes an option for what was typed: of a string, changes nothing but its quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = argument.partition("=")
    try:
        override = OverridesParser.create().parse_override(argument)
        read = override.value()
    except HydraException:
        return False
    if not _is_string(key, value):
        return True
    if override.is_sweep_override():
        return sweeping
    in_quotes_already = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return read is None or in_quotes_already or "${" in value or str(read) == value


def at_home(value: str) -> str:
    """`~/my.csv` with the folder that it stands for: behind an `=`, shells leave it as it is."""
    return os.path.expanduser(value) if re.match(r"~[/\\]", value) else value


def _quoted(element: str) -> str:
    text = element.strip()
    if re.fullmatch(r"[\w\s./\\+*%@?|:$=-]*", text, re.ASCII) or text[0] == '"' or "'" in text:
        return element  # plain, quoted already, or beyond guessing
    return element.replace(text, f"'{text}'")


def main() -> None:
    """Run; a mistake in the configuration becomes one message, and any failure an exit code of 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has Chinese characters
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions, to be explained here
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    gc.disable()  # the imports create a million objects and drop none: looking for garbage among them takes a second
    schema.register()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("file_name", file_name, replace=True)
    if {"-sc", "--shell-completion"} & set(sys.argv[1:]):
        from runs import completion

        completion.install()
    sweeping = bool({"-m", "--multirun"} & set(sys.argv[1:]))
    predicting = any(re.fullmatch("(-cn=|--config-name=)?predict", word) for word in sys.argv[1:])
    sys.argv[1:] = [as_typed(word) if predicting else quoted(word, sweeping) for word in sys.argv[1:]]
    guard.watch(sys.argv[1:])
    try:
        job()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        leave(error, debug=bool({"debug=true", "debug=1"} & {word.lower() for word in sys.argv}))
    if (jobs := sys.modules.get("runs.job")) is not None and jobs.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
