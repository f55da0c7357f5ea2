"""Texts that a spreadsheet would compute, in CSV files: `=1+1` from a review runs when somebody opens the file."""

from __future__ import annotations

import re

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

FORMULA, ESCAPED = r"^([=+\-@\t\r])", r"'\1"  # with an apostrophe before it, a cell stays text


def escape_name(name: str) -> str:
    """The name of a column as text."""
    return re.sub(FORMULA, ESCAPED, name)


def escape_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts stay texts."""
    return frame.replace(FORMULA, ESCAPED, regex=True).rename(columns=escape_name)


def escape_table(table: pa.Table) -> pa.Table:
    """The same of an Arrow table; its names are left as they are."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            escaped = pc.replace_substring_regex(  # pyright: ignore[reportAttributeAccessIssue]
                table.column(place), FORMULA, ESCAPED
            )
            table = table.set_column(place, field.name, escaped)
    return table
