from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.sources import DataError
from datamodules.streaming import LONGEST, Row, TableStream

# What a file in UTF-8 can hold; NUL has a test of its own.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\ufeff")
CELL = st.text(CHARACTERS, max_size=12) | st.text('a,"\n\r ', max_size=6)
GOOD = [f"文本{number},标签" for number in range(4)]


def rows_of(path: Path, *columns: str, **options: Any) -> list[Row]:
    with TableStream(path, dict.fromkeys(columns, "data.text_column"), **options) as table:
        return list(table.rows())


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str | bytes, header: str = "text,label", name: str = "评 论.csv") -> Path:
        path = tmp_path / name
        parts = (header, *lines)
        path.write_bytes(b"".join(part if isinstance(part, bytes) else f"{part}\n".encode() for part in parts))
        return path

    return write


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(CELL, CELL, CELL), max_size=8), end=st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_has_written_is_read_back_cell_by_cell(
    cells: list[tuple[str, str, str]], end: str, tmp_path: Path
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *cells])
    path = tmp_path / "table.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8-sig"))
    rows = rows_of(path, "b")
    assert [tuple(row.fields) for row in rows] == cells
    assert all(row.whole for row in rows)
    assert not any(row.note for row in rows if not re.search("[\r\n]", "".join(row.fields)))


HOSTILE = {
    'never closed,"': (["never closed", '"'], "a quote is never closed", False),
    '"never, closed': (['"never', " closed"], "a quote is never closed", False),
    'a,"b"c': (["a", '"b"c'], "a quote is never closed", False),
    "one": (["one", ""], "row has 1 fields, the header has 2", False),
    "a,b,c,d": (["a", "b,c,d"], "row has 4 fields, the header has 2", False),
    "n\0u\0l,x": (["nul", "x"], "NULs removed: 2", True),
    '\0"a,\0b"\0,x': (["a,b", "x"], "NULs removed: 3", True),
    '\0,"': (["", '"'], "a quote is never closed; NULs removed: 1", False),
    "😀👩‍👩‍👧,x": (["😀👩‍👩‍👧", "x"], "", True),
    "字" * 100_000 + ",x": (["字" * 100_000, "x"], "", True),
    ",": (["", ""], "", True),
    "NA,null": (["NA", "null"], "", True),
}


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: repr(line[:14]))
def test_a_hostile_row_is_one_row_and_its_neighbours_stay_as_they_are(line: str, table: Callable[..., Path]) -> None:
    fields, note, whole = HOSTILE[line]
    rows = rows_of(table(*GOOD, line, *GOOD), "text")
    assert [row.fields for row in rows[:4] + rows[5:]] == 2 * [line.split(",") for line in GOOD]
    assert all(row.whole and not row.note for row in rows[:4] + rows[5:])
    assert (rows[4].fields, rows[4].note, rows[4].whole) == (fields, note, whole)
    assert [row.line for row in rows] == list(range(2, 11))


def test_bytes_of_another_encoding_and_halves_of_characters_are_marked(table: Callable[..., Path]) -> None:
    gbk, surrogate = "酒店,x\n".encode("gbk"), b"\xed\xa0\xbd,x\n"
    rows = rows_of(table(*GOOD, gbk, surrogate, *GOOD), "text")
    assert len(rows) == 10
    assert [row.note for row in rows[4:6]] == [f"characters that are not utf-8: {count}" for count in (2, 3)]
    assert rows[5].fields == ["\ufffd" * 3, "x"]
    assert all(row.whole for row in rows)
    "".join(field for row in rows for field in row.fields).encode()  # nothing is left that can't be written


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_over_quoted_line_breaks(end: str, table: Callable[..., Path]) -> None:
    lines = ['"two', 'lines",x', "one,x", 'broken,"', "two,x"]
    path = table(end.join(lines).encode(), header=f"text,label{end}".rstrip("\n"))
    path.write_bytes(end.join(["text,label", *lines]).encode())
    assert [(row.line, row.whole) for row in rows_of(path, "text")] == [(2, True), (4, True), (5, False), (6, True)]


def test_a_quote_that_no_other_closes_takes_no_row_with_it(table: Callable[..., Path]) -> None:
    rows = rows_of(table(*(f'"{number}' if number % 3 == 0 else f"{number},x" for number in range(3000))), "text")
    assert [row.fields[0].strip('"') for row in rows] == list(map(str, range(3000)))
    assert [row.whole for row in rows] == [number % 3 > 0 for number in range(3000)]


TWO_LINES = '"很好，\n\n很快",好评'


def test_rows_between_two_stray_quotes_are_noted(table: Callable[..., Path]) -> None:
    rows = rows_of(table(*GOOD, '"a,x', "b,y", 'c",z', TWO_LINES, *GOOD), "text")
    assert rows[4] == Row(6, ["a,x\nb,y\nc", "z"], "its quotes may enclose other rows", True)
    assert rows[5] == Row(9, ["很好，\n\n很快", "好评"], "", True)
    assert not any(row.note for row in rows[:4] + rows[5:])
    one = rows_of(table('"a', "b", 'c"', header="text"), "text")
    assert one == [Row(2, ["a\nb\nc"], "", True)]


def test_blank_lines_are_rows_only_where_there_is_one_column(table: Callable[..., Path]) -> None:
    assert [row.fields for row in rows_of(table("a,b", "", "c,d", ""), "text")] == [["a", "b"], ["c", "d"]]
    assert [row.fields for row in rows_of(table("a", "", "c", header="text"), "text")] == [["a"], [""], ["c"]]


@pytest.mark.parametrize("written", ["gb18030", "utf-16", "utf-8-sig"])
def test_other_encodings_separators_and_archives(written: str, tmp_path: Path) -> None:
    encoding = written.removesuffix("-sig")
    text = "内容;类别\n很好;好评\n太差;差评\n"
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("__MACOSX/._t.csv", b"x")
        archive.writestr("t.csv", text.encode(written))
    with TableStream(tmp_path / "t.zip", {"内容": "text_column"}, encoding=encoding, separator=";") as table:
        assert table.header == ["内容", "类别"]
        assert [row.fields for row in table.rows()] == [["很好", "好评"], ["太差", "差评"]]
        assert table.position == table.size == len(text.encode(written))


MISTAKES = [
    (b"", {}, "is empty"),
    ("内容,类别\n好,x\n".encode("gbk"), {}, "data.encoding=gb18030"),
    (b"text,label\n" + "很好的酒店,x\n".encode("gbk") * 3, {}, "line 2 and others are not utf-8.*gb18030"),
    ("text,label\n好的,x\n".encode("utf-16"), {}, "data.encoding=utf-16"),
    (b"other,label\na,b\n", {}, r"columns \['text'\] are missing; found \['other', 'label'\].*data.text_column"),
    (b"text;label\na;b\n", {}, "Try data.separator=';'"),
    (b"text,text\na,b\n", {}, "occur more than once"),
    ("text,评\n很好,x\n".encode(), {"encoding": "ascii"}, "it reads as UTF-8, try data.encoding=utf-8"),
    (b"text\na\n", {"encoding": "klingon"}, "data.encoding='klingon'"),
    (b"text\na\n", {"encoding": "utf-16"}, "data.encoding"),
    (b"text\na\n", {"separator": ";;"}, "data.separator=';;' must be one character"),
    (b"text\n" + b"a" * (4 * LONGEST + 9), {}, "line 2 has 4,000,000 characters and more"),
    (b"PK\x03\x04 and no archive", {}, "damaged or locked zip archive"),
]


@pytest.mark.parametrize(("content", "options", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_file_that_is_no_such_table_is_one_message(
    content: bytes, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows_of(path, "text", **options)
    assert "t.csv" in str(caught.value) or "separator" in str(caught.value)


def test_the_encoding_of_a_table_in_an_archive_is_suggested_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", "内容,类别\n很好,好评\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"data\.encoding=utf-16"):
        rows_of(tmp_path / "t.zip", "内容")


def test_an_archive_cut_off_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", "text,label\n" + "".join(f"{number * 7919},x\n" for number in range(50_000)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match="damaged zip archive"):
        rows_of(path, "text")
