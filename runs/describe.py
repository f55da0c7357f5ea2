"""What a network is made of, before it is trained: layers, equations, cost, backend. Of a run, also its memory.

Legend: B batch, T time, I input_size, H hidden_size, G gate blocks.
"""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from datamodules import DataError
from runs import figures
from runs.build import build_datamodule, build_task, check_targets, plain, read_config, refuse_download
from runs.checkpoints import read_json
from runs.checks import validate
from runs.memory import NOTHING, examples, lag_below, memory_curve
from runs.predict import load
from runs.report import write_json
from runs.schema import ConfigError
from tasks import Baseline, Task

log = logging.getLogger(__name__)

CLASSES, VOCABULARY = 10, 30_000
"""Where no data says otherwise."""
FURTHER = {"others": "model", "other_votes": "votes"}
"""Attributes of a task that hold its other members, and what the first is called."""
OWN_OPTIONS = ("run", "checkpoint", "sequences", "output", "trust", "debug")


def run(config: DictConfig) -> None:
    """Describe what the options ask for, or the runs in the folders `run`, and draw the memory of these.

    Raises:
        ConfigError: an option is out of range, `run` names no run folder, or other options stand beside it.
        CheckpointError: a run has no weights that can be read.
    """
    validate(config)
    settings, console = plain(config), Console()
    for chatty in ("datamodules", "rnn_cells"):  # what was found in the data, the run has said; the rest is said here
        logging.getLogger(chatty).setLevel(logging.WARNING)
    folders = [settings["run"]] if isinstance(settings["run"], str) else settings["run"] or []
    if not folders:
        check_targets(settings, settings["trust"])
        task = build_task(settings, stand_ins(settings))
        classes = f"{CLASSES} classes and " if settings["task"]["name"] == "cls" else ""
        print_description(task, settings, f"Without data: {classes}sizes from the options.", console)
        return
    words = HydraConfig.get().overrides.task
    if other := [word for word in words if word.partition("=")[0].lstrip("+~") not in OWN_OPTIONS]:
        raise ConfigError(f"run=… is described as it was trained: leave out {' '.join(other)}")
    curves: dict[str, dict[str, Any]] = {}
    for folder in map(Path, folders):
        task = load({"run": folder, "checkpoint": settings["checkpoint"], "trust": settings["trust"]}).task
        saved = read_config(folder)
        saved["trust"] = settings["trust"]  # said on the command line, never by a folder that may be anybody's
        print_description(task, saved, f"Sizes and weights of {folder}.", console)
        batch, source = _inputs_of(task, saved, folder, settings["sequences"])
        if (curve := memory_curve(task, batch)) is not None:
            names = (saved["model"]["name"], folder.name, str(folder))
            label = next((name for name in names if name not in curves), str(folder))
            curves[label] = {"run": str(folder), "inputs": source, **curve}
    if curves:
        home = Path(folders[0])
        output = Path(settings["output"] or (home / "figures" if len(folders) == 1 else home.parent) / "memory")
        _print_memory(curves, console)
        figures.save(figures.memory(curves), output)
        write_json(output.with_suffix(".json"), curves)
        console.print(f"memory: {output.with_suffix('.png')}, .svg, .json", soft_wrap=True, markup=False)


def stand_ins(config: dict[str, Any]) -> dict[str, Any]:
    """The facts of data that isn't read: what the options say, and `CLASSES` and `VOCABULARY` at most."""
    data = config["data"]
    if config["task"]["name"] == "cls":
        words = [f"word {number}" for number in range(min(data["max_vocabulary"], VOCABULARY))]
        return {
            "classes": [f"class {number}" for number in range(1, CLASSES + 1)],
            "vocabulary": words,
            "vocab_size": len(words),
            "padding_index": 0,
            "unknown_index": 1,
            "max_length": data["max_length"],
        }
    sizes = getattr(build_datamodule(config), "sizes", None)
    if sizes is None:
        raise ConfigError(f"data={data['name']} doesn't say its sizes: describe a run of it, run=FOLDER")
    return {**sizes, "target_mean": 0.0, "target_std": 1.0}


def print_description(task: Task, config: dict[str, Any], note: str, console: Console) -> None:
    """Print layers, equations, cost and backend of a task for a batch as large as the configuration's."""
    name, data = config["model"]["name"], config["data"]
    console.print(f"\n[bold]{escape(name)}[/bold] for task={config['task']['name']}. {escape(note)}", soft_wrap=True)
    if isinstance(task.model, Baseline):
        console.print(escape(_docstring(task.model)), soft_wrap=True, highlight=False)
        fitted = f": {task.num_parameters:,} coefficients" if task.model.learned else ""
        console.print(f"\nA baseline, fitted in one go{fitted}")
        return
    device, dtype, mixed = _arithmetic(config["trainer"])
    task.to(device, dtype).eval()
    batch = random_batch(task, 1)
    encoder: Any = task.model.encoder
    seen: list[Tensor] = []
    hook = encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast(device, enabled=mixed):
        console.print(_layer_table(task, batch, data["batch_size"]))
        reasons = encoder.why_not(seen[0].transpose(0, 1)) if hasattr(encoder, "why_not") else None
    hook.remove()
    several = f", of {len(task.members)} networks whose answers are averaged; below, the first" if task.others else ""
    console.print(f"{task.num_parameters:,} parameters{several}")
    if reasons is None:
        console.print("\n" + escape(_docstring(encoder)), soft_wrap=True, highlight=False)
        return
    console.print("\n" + escape(_docstring(encoder.cells[0])), soft_wrap=True, highlight=False)
    _print_cost(task, batch["inputs"].shape[1], console)
    chosen = next(each for each, reason in reasons.items() if encoder.backend in ("auto", each) and reason is None)
    console.print(f"backend={escape(encoder.backend)} runs it on [bold]{escape(chosen)}[/bold]")
    for faster in [*reasons][: [*reasons].index(chosen)]:
        console.print(f"not on {faster}: {reasons[faster] or 'another was asked for'}", soft_wrap=True, markup=False)


def _docstring(thing: Any) -> str:
    """Of its class alone, up to its arguments."""
    text = type(thing).__doc__
    return inspect.cleandoc(text).partition("\nArgs:")[0].strip() if text else f"{type(thing).__name__}: no docstring"


def _arithmetic(trainer: dict[str, Any]) -> tuple[str, torch.dtype, bool]:
    """Where the trainer computes and in which type, and whether precisions are mixed."""
    gpu = trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision = str(trainer["precision"])
    types = {"64": torch.float64, "64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
    mixed = precision.endswith("mixed") or precision in ("16", "bf16")
    return "cuda" if gpu else "cpu", types.get(precision, torch.float32), mixed


def random_batch(task: Task, size: int) -> dict[str, Tensor]:
    """Sequences as long as the data's facts allow: words drawn evenly, or readings from the normal distribution."""
    facts, weight = task.blueprint["facts"], next(task.model.parameters())
    generator = torch.Generator().manual_seed(0)
    if "vocab_size" in facts:
        shape = (size, facts["max_length"])
        inputs = torch.randint(min(2, facts["vocab_size"] - 1), facts["vocab_size"], shape, generator=generator)
        lengths = torch.full((size,), facts["max_length"])
        batch = {"inputs": inputs, "characters": inputs, "lengths": lengths}
    else:
        inputs = torch.randn(size, facts["lookback"], facts["num_features"], generator=generator).to(weight.dtype)
        ahead = torch.zeros(size, facts["horizon"], dtype=weight.dtype)
        batch = {"inputs": inputs, "history": inputs[..., 0], "climatology": ahead}
    return {name: values.to(weight.device) for name, values in batch.items()}


def _layer_table(task: Task, batch: dict[str, Tensor], batch_size: int) -> Table:
    """Every layer with the shape of its output, the batch first, and its parameters."""
    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        shapes[module] = " × ".join(map(str, (batch_size, *first.shape[1:])))

    hooks = [module.register_forward_hook(note) for module in task.modules()]
    with torch.no_grad():
        task.predict_step(batch, 0)
    for hook in hooks:
        hook.remove()
    steps = batch["inputs"].shape[1]
    table = Table(title=f"Layers, for {batch_size} sequences of {steps} steps", title_justify="left")
    for column in ("layer", "kind", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for name, module in [*task.named_modules()][1:]:  # the first is the task itself
        parameters = sum(each.numel() for each in module.parameters())
        if hasattr(module, "state_names"):  # a cell, which a backend runs without calling it
            shapes[module] = f"{', '.join(module.state_names)}: {batch_size} × {module.hidden_size} a step"  # pyright: ignore
        if module in shapes:
            kind = f"{type(module).__name__}({module.extra_repr()})" if module.extra_repr() else type(module).__name__
            table.add_row(_in_its_place(name), escape(kind), shapes[module], f"{parameters:,}")
    return table


def _in_its_place(name: str) -> str:
    """The last part of a module's full name, indented below the parts that have rows of their own."""
    *above, own = re.sub(r"\.(\d+)", r" \1", name).split(".")
    group, _, number = own.partition(" ")
    if group in FURTHER:  # the first one stands by itself
        own = f"{FURTHER[group]} {int(number) + 2}"
    return "  " * len(above) + own.replace("cells ", "cell ")


def _print_cost(task: Task, steps: int, console: Console) -> None:
    """Multiply-adds and bytes of state, per sequence."""
    model: Any = task.model
    table = Table(title="Cost of a sequence: multiply-adds by the matrices", title_justify="left")
    for column in ("", "x W, a step", "h U, a step", f"all {steps} steps", "bytes of state"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    total, held = 0, 0
    unused: dict[str, int] = {}
    for number, cell in enumerate(model.encoder.cells):
        used = _used(cell)
        unused |= {name: each.numel() for name, each in cell.named_parameters() if name not in used}
        matrices = {name: each.numel() for name, each in cell.named_parameters() if name in used and each.ndim == 2}
        ahead = matrices.pop("weight_ih", 0)
        after = sum(matrices.values())
        state = sum(part.numel() * part.element_size() for part in cell.initial_state(1))
        total, held = total + steps * (ahead + after), held + state
        table.add_row(f"cell {number}", f"{ahead:,}", f"{after:,}", f"{steps * (ahead + after):,}", f"{state:,}")
    head = model.head.weight.numel()
    table.add_row("head", "", "", f"{head:,}", "")
    if (count := len(task.members)) == 1:
        table.add_row("in all", "", "", f"{total + head:,}", f"{held:,}", style="bold")
    else:
        of_all = (f"{count * (total + head):,}", f"{count * held:,}")
        table.add_row(f"in all, of {count} networks", "", "", *of_all, style="bold")
    console.print("\n", table, sep="")
    console.print(
        "A step multiplies by each matrix of the cell once, rows × columns: G·H·I for x W, which is one product for "
        "all steps, and G·H·H for h U, step after step. Biases and what is done element by element are not counted.",
        soft_wrap=True,
    )
    if unused:
        listed = ", ".join(f"{name} ({count:,})" for name, count in unused.items())
        console.print(f"The equations make no use of {listed}.")


def _used(cell: Any) -> set[str]:
    """The parameters on which a step's state depends."""
    names, parameters = zip(*cell.named_parameters(), strict=True)
    _, state = cell(parameters[0].new_zeros(1, cell.input_size))
    gradients = torch.autograd.grad(torch.cat(state).sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _inputs_of(task: Task, saved: dict[str, Any], folder: Path, count: int) -> tuple[dict[str, Tensor], str]:
    """Examples of the split that the run was scored on, and in words what they are; random ones without its data."""
    split = saved["score_on"]
    try:
        known = read_json(folder / "data_report.json")["sha256"]
    except (OSError, KeyError, ConfigError):
        log.warning(f"{folder}: data_report.json is damaged, so that the memory is measured on random inputs")
        return random_batch(task, count), "drawn at random"
    there = "error" if known else "sample"  # without a file, it was the sample
    try:
        config = {**saved, "data": {**saved["data"], "on_missing": there}}
        refuse_download(config, folder)
        datamodule = build_datamodule(config)
        datamodule.setup()
    except DataError as error:
        log.warning(f"{folder}: its data can't be read, so that the memory is measured on random inputs: {error}")
        return random_batch(task, count), "drawn at random"
    if datamodule.report["sha256"] != known:
        log.warning(f"{folder}: its data has changed, so that the memory is measured on random inputs")
        return random_batch(task, count), "drawn at random"
    loader = datamodule.test_dataloader() if split == "test" else datamodule.val_dataloader()
    return examples(loader.dataset, count), f"of the {split} split"


def _print_memory(curves: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table(title="Memory: |dh_T / ds_{T-k}| / √H by lag k, of the top layer", title_justify="left")
    for column in ("run", "inputs", "direction", "a half at", "1% at", "at the longest"):
        table.add_column(column, justify="left" if column in ("run", "inputs", "direction") else "right")
    for label, curve in curves.items():
        inputs = f"{curve['sequences']} {curve['inputs']}"
        for direction, norms in curve["norm"].items():
            lags = ("never" if (lag := lag_below(norms, share)) is None else str(lag) for share in (0.5, 0.01))
            longest = f"{norms[-1]:.1e}" if norms[-1] else f"under {NOTHING:.0e}"
            table.add_row(escape(label), inputs, direction, *lags, f"{longest} ({len(norms) - 1})")
    console.print("\n", table, sep="")
