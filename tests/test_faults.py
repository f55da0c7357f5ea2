"""Every row of docs/faults.md has tests, and they are there."""

from __future__ import annotations

import re

import pytest

from tests import faults


def test_the_page_has_fifty_rows() -> None:
    assert [*faults.rows()] == [*range(1, 51)]


@pytest.mark.parametrize("row", faults.rows())
def test_every_row_has_tests_that_are_there(row: int) -> None:
    _, tests = faults.rows()[row]
    assert tests
    for test in tests:
        file, _, name = test.partition("::")
        text = (faults.ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(" if name else "^def test_", text, re.MULTILINE), test
