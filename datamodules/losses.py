"""Rows that are lost between a file and a data set: a few are normal, many are a fault of the file or an option."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .sources import DataError

logger = logging.getLogger(__name__)

LOST, TOO_MANY, FEW = 0.01, 0.1, 3  # the share that is a warning, and an error; less than so many are neither
Loss = tuple[int, int, str, str]
"""How many are lost, of how many, of what, and why."""


def check_losses(losses: Sequence[Loss], allow: bool, source: str | None) -> None:
    """Warn of what loses more than 1% of the rows.

    Raises:
        DataError: it is more than 10% without `allow`, or all of them.
    """
    for lost, total, what, fault in losses:
        if lost < FEW or lost <= LOST * total:
            continue
        text = f"{source}: {lost} of {total} {what} ({lost / total:.0%}) are lost: they {fault}"
        if lost > TOO_MANY * total and not (allow and lost < total):
            accept = ", or accept the loss with data.allow_loss=true" if lost < total else ""
            raise DataError(f"{text}. Correct the file or the option{accept}")
        logger.warning("%s", text)
