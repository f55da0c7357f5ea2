"""Files to batches: reviews and time series, cleaned, split, encoded and batched. Knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.series import SeriesDataModule
    from datamodules.sources import DataError
    from datamodules.text import TextDataModule

__all__ = ["DataError", "SeriesDataModule", "TextDataModule"]

_HOMES = {"DataError": "sources", "SeriesDataModule": "series", "TextDataModule": "text"}


def __getattr__(name: str) -> Any:
    # Importing the package must stay light: torch, pandas and Lightning come with the class that is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
