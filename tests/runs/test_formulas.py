from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from runs.formulas import escape_frame, escape_table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    frame = pd.DataFrame({"text": [text, "a" + text, "", None], "=name": [1.0, -2.0, 3.0, 4.0]})
    expected = ["'" + text, "a" + text, ""]
    escaped = escape_frame(frame)
    assert escaped["text"].tolist()[:3] == expected
    assert escaped["'=name"].tolist() == frame["=name"].tolist()
    table = escape_table(pa.table({"text": [text, "a" + text, "", None], "number": [1.0, -2.0, 3.0, 4.0]}))
    assert table["text"].to_pylist() == [*expected, None]
    assert table["number"].to_pylist() == [1.0, -2.0, 3.0, 4.0]
