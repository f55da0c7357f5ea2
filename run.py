"""The one entry point: compose the configuration with Hydra and hand over to `runs`.

Heavy imports stay inside functions, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs import schema


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def job(config: DictConfig) -> float | None:
    """One run of the configuration; a sweep calls this once per combination."""
    if HydraConfig.get().mode == RunMode.RUN and not OmegaConf.select(config, "debug", default=False):
        try:  # before anything heavy is imported; in a sweep, each run fails for itself
            schema.validate(config)
        except schema.ConfigError as error:
            sys.exit(f"error: {error}")
    if HydraConfig.get().job.config_name == "benchmark":
        from runs.benchmark import run
    else:
        from runs.job import run
    gc.freeze()  # what is there now stays: later collections needn't look at it
    gc.enable()
    return run(config)


HELP = """RNN Lab: recurrent networks from readable cells, for text classification and forecasting.

Examples
  python run.py model=bilstm task=cls                         categories of Chinese reviews
  python run.py model=lstm task=forecast optimizer.lr=3e-4    the next two days of temperature, from five
  python run.py -m model=rnn,gru,lstm,bilstm seed=0,1,2       a sweep, compared at its end
  python run.py -cn benchmark                                 our layers against torch.nn's

Groups: choose with group=name
{groups}
  hydra/launcher, hydra/sweeper and others belong to Hydra: python run.py --hydra-help

Options: change with name=value
  seed                        of weights, batch order and dropout
  data.path                   your own CSV file; data.text_column, data.target, data.time_column name its columns
  data.batch_size, data.split_seed, task.pooling, task.dropout, optimizer.lr, optimizer.weight_decay
  model.encoder.hidden_size, model.encoder.num_layers, model.encoder.backend
  trainer.max_epochs, trainer.fast_dev_run=true (one batch of everything, to see that it works)
  hydra.run.dir=FOLDER        the run folder; by default a new one in outputs/
  resume=FOLDER               continue an interrupted run
  debug=true                  show the stack trace of an error

python run.py --cfg job shows the whole configuration, with group=name and name=value applied."""


def help_text() -> str:
    """The answer to `--help`. Hydra's own composes everything first, which takes seconds."""
    folder = Path(__file__).parent / "conf"
    order = ("task", "model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")
    groups = {group: sorted(path.stem for path in (folder / group).glob("*.yaml")) for group in order}
    return HELP.format(groups="\n".join(f"  {group:<12}{', '.join(names)}" for group, names in groups.items()))


def quoted(argument: str) -> str:
    """A value that is not ASCII, quoted as Hydra's grammar wants it: data.text_column=内容 works as typed."""
    key, equals, value = argument.partition("=")
    if not equals or value.isascii() or value[0] in "'\"[{(":
        return argument
    return f"{key}='{value}'" if "'" not in value else argument


def main() -> None:
    """Run; a mistake in the configuration becomes one message, and any failure an exit code of 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions, to be explained here
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    gc.disable()  # the imports create a million objects and drop none: looking for garbage among them takes a second
    schema.register()
    OmegaConf.register_new_resolver("run_folder", lambda resume, new: resume or new, replace=True)
    sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    for argument in sys.argv[1:]:
        folder = argument.removeprefix("resume=").strip("'\"")
        if argument.startswith("resume=") and folder != "null" and not (Path(folder) / "config.yaml").exists():
            sys.exit(f"error: nothing to resume from: {folder} is not a run folder (it has no config.yaml)")
    try:
        job()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from runs.errors import explain

        if {"debug=true", "debug=1"} & {word.lower() for word in sys.argv} or (
            message := explain(error, sys.argv[1:])
        ) is None:
            raise
        sys.exit(f"error: {message}")
    if (jobs := sys.modules.get("runs.job")) is not None and jobs.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
