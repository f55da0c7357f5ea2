"""Tables that are written part by part, and bars that show how far it is."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow.csv import CSVWriter
from pyarrow.parquet import ParquetWriter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runs.checkpoints import replacing
from runs.formulas import escape_name, escape_table

T = TypeVar("T")


@contextmanager
def table_writer(path: Path, schema: pa.Schema, escape_formulas: bool = False) -> Iterator[Any]:
    """An object with `write(table)`; `path` is there once all is written.

    CSV is UTF-8 with a byte order mark, by which Excel knows it, in China as elsewhere; with `escape_formulas`, texts
    and names of columns that a spreadsheet would compute have a `'` before them.
    """
    with replacing(path) as file:
        if path.suffix.lower() == ".parquet":
            with ParquetWriter(file, schema) as writer:
                yield writer
        else:
            file.write(codecs.BOM_UTF8)
            if not escape_formulas:
                with CSVWriter(pa.PythonFile(file, mode="w"), schema) as writer:
                    yield writer
                return
            schema = pa.schema([field.with_name(escape_name(field.name)) for field in schema])
            with CSVWriter(pa.PythonFile(file, mode="w"), schema) as writer:
                names = schema.names
                yield SimpleNamespace(write=lambda table: writer.write(escape_table(table).rename_columns(names)))


def console() -> Console:
    """A console that prints classes and columns as they are called, whatever brackets and colons are in their names."""
    return Console(markup=False, emoji=False)


def bar(bytes: bool) -> Progress:
    """A progress bar of bytes or of things, where there is a terminal."""
    count = DownloadColumn(binary_units=True) if bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    progress = Progress(*columns, transient=True)
    progress.disable = not progress.console.is_terminal
    return progress


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the caller is busy with the one before."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item
