"""Errors a user can mend, in one message."""

from __future__ import annotations

import re
import shlex
import traceback
from itertools import accumulate

from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.sources import DataError
from runs.checks import suggestion
from runs.completion import choices, groups
from runs.schema import PROGRAMS, Config, ConfigError


class CheckpointError(RuntimeError):
    """A checkpoint can't be used; the message says which one could."""


def explain(error: BaseException, arguments: list[str]) -> str | None:
    """What to tell the user about `error`, or None if it is no mistake of theirs but a bug to be seen whole.

    Args:
        error: what was raised.
        arguments: the command line's, for naming a likely spelling of a misspelt key.
    """
    if isinstance(error, ConfigError | CheckpointError | DataError):
        return str(error)
    if isinstance(error, OverrideParseException):
        reason = str(error).partition("\n")[0]
        return f"{error.override}: {reason}. A value with special characters wants quotes: key='\"value\"'"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        if cause is not None and not isinstance(cause, HydraException | OmegaConfBaseException):
            if isinstance(cause, TypeError):  # an option that what a _target_ names doesn't take
                return f"{_first_lines(cause)}; ~GROUP.OPTION on the command line leaves one out"
            return explain(cause, arguments) or (_first_lines(cause) if isinstance(cause, ValueError) else None)
        return "\n".join(filter(None, [_first_lines(error, cause), _suggestion(f"{error}\n{cause}")]))
    if isinstance(error, AssertionError | AttributeError) and (message := _below_null(error)):
        return message
    if raised_within(error, "hydra._internal.config_loader_impl"):  # nothing but a command line makes it fail
        return _uncomposable(error, arguments)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason
    if isinstance(error, ValueError) and _raised_in(error) == "rnn_cells.backends":
        return f"model.encoder.backend: {error}"
    # Whatever raised these has been imported by now: looking the classes up costs nothing.
    from pytorch_lightning.utilities.exceptions import MisconfigurationException  # pyright: ignore

    from tasks import DivergedError

    if isinstance(error, DivergedError | MisconfigurationException):
        return str(error)
    lightnings = (ValueError, TypeError, RuntimeError, ImportError)  # of how an argument or a callback of it is used
    if isinstance(error, lightnings) and (_raised_in(error) or "").startswith("pytorch_lightning."):
        return f"trainer or callbacks.extra: {_first_lines(error)}"
    if isinstance(error, MemoryError) or re.search(
        "out of memory|can't allocate memory|size calculation overflowed", str(error)
    ):
        remedy = "lower the batch size (data.batch_size), model.encoder.hidden_size, data.max_length or data.lookback"
        return f"out of memory ({_first_lines(error)}): {remedy}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):  # torch has no class for it
        reason = str(error).splitlines()[0].rstrip(".")
        return f"{reason}: most often, memory ran out; lower data.num_workers (0 needs no further process), and resume"
    return None


def _below_null(error: BaseException) -> str | None:
    """What to say of an option of what is null: OmegaConf doesn't foresee that anybody sets one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is OmegaConf.update.__code__]
    if not frames:
        return None
    config, key = frames[-1].f_locals["cfg"], frames[-1].f_locals["key"]
    owners = accumulate(key.split("."), "{}.{}".format)
    null = next((owner for owner in owners if OmegaConf.select(config, owner) is None), None)
    if null is None:
        return None
    group = key.partition(".")[0]
    others = " or ".join(f"{group}={choice}" for choice in choices(group) if choice != "none")
    advice = "choose" if null == group else "other choices may have them:"
    return f"{key}: {null} is null, it has no options" + (f"; {advice} {others}" if others else "")


def _uncomposable(error: BaseException, arguments: list[str]) -> str:
    """What to say of a command line over which Hydra stumbles: mostly, the choice of a group is no name."""
    for argument in arguments:
        group, _, value = argument.lstrip("+~").partition("=")
        if group in groups() and (value in ("null", "true", "false") or not re.match(r"[^\W\d]", value)):
            return f"{argument}: a choice of {group} is a name: {', '.join(choices(group))}"
    return f"the options {shlex.join(arguments)} don't go together: {_first_lines(error) or repr(error)}"


def raised_within(error: BaseException, module: str) -> bool:
    """Whether the module was at work when it was raised."""
    return any(frame.f_globals.get("__name__") == module for frame, _ in traceback.walk_tb(error.__traceback__))


def _raised_in(error: BaseException) -> str:
    """The module that raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"] if frames else ""


def _first_lines(*errors: BaseException | None) -> str:
    """The messages without Hydra's internals (full_key, object_type, how to set HYDRA_FULL_ERROR)."""
    texts = [str(error).partition("Config search path:")[0] for error in errors if error is not None]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    lines = [re.sub(r"^ConfigError raised while resolving interpolation: ", "", line) for line in lines]
    noise = ("full_key:", "object_type=", "reference_type=", "To append to your config", "Set the environment")
    kept = list(dict.fromkeys(line for line in lines if line and not line.startswith(noise)))
    for at, line in enumerate(kept):
        if line.startswith("Available options in"):
            kept[at:] = [f"{line} {', '.join(kept[at + 1 :])}"]
            break
    return "\n".join(kept)


def _suggestion(message: str) -> str:
    """The known key nearest to the one that the message complains of."""
    match = re.search(r"Could not override '([^']+)'", message) or re.search(r"Key '([^']+)' (?:is )?not in", message)
    if match is None:
        return ""
    owners = (each for each, _ in PROGRAMS.values() if f"not in '{each.__name__}'" in message)
    return suggestion(match[1], next(owners, Config))
