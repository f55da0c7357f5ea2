from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.formats import CsvFormat
from datamodules.sources import DataError, Source
from datamodules.streaming import LINE, TableStream, read_table

ROWS = [["好", "很好"], ["坏", "太差"]]


def cells(path: Path, *columns: str, **options: Any) -> list[list[str]]:
    """The rows as `read_table` has them, and the same as a stream has them."""
    columns = columns or ("cat", "review")
    frame = read_table(path, columns=columns, **options)
    with TableStream(path, columns, **options) as table:
        places = [table.header.index(name) for name in columns]
        rows = list(table.rows())
    assert [row.line for row in rows][: len(frame)] == frame[LINE].tolist()
    found = frame[list(columns)].to_numpy().tolist()
    assert [[row.fields[at] for at in places] for row in rows][: len(frame)] == found
    return found


def text(separator: str = ",") -> bytes:
    return "\n".join(map(separator.join, [["cat", "review"], *ROWS, []])).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.TAB", "\t"), ("t.txt", ",")])
def test_the_name_of_a_file_tells_its_separator_and_its_beginning_how_it_is_compressed(
    name: str, separator: str, suffix: str, tmp_path: Path
) -> None:
    compress: Any = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    path = tmp_path / (name + suffix)
    path.write_bytes(compress(text(separator)))
    assert cells(path) == ROWS
    with TableStream(path, []) as table:
        list(table.rows())
        assert table.position == table.size == path.stat().st_size


def test_a_separator_that_is_given_counts_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(text(","))
    assert cells(tmp_path / "t.tsv", separator=",") == ROWS
    (tmp_path / "t.csv").write_bytes(text("\t"))
    assert cells(tmp_path / "t.csv", separator="tab") == ROWS
    with pytest.raises(DataError, match=r"Try data\.separator=tab"):
        cells(tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_file_that_is_cut_or_none_is_a_message(suffix: str, tmp_path: Path) -> None:
    compress: Any = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    path = tmp_path / f"t.csv{suffix}"
    whole = compress(text() + b"a,b\n" * 100_000)
    for content, message in [
        (whole[:-9], "is a damaged"),
        (whole[:20], "is a damaged"),
        (text(), "is not a"),
        (b"", "is empty"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"t\.csv\{suffix} {message}.*get it again"):
            cells(path)
        with pytest.raises(DataError, match=message), TableStream(path, []) as table:
            list(table.rows())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for member, separator in {
            "set/train.tsv": "\t",
            "set/test.tsv": "\t",
            "readme.txt": ":",
            "a/x.csv": ",",
            "b/x.csv": ",",
        }.items():
            archive.writestr(member, text(separator))
    return tmp_path / "all.zip"


@pytest.mark.parametrize("member", ["set/train.tsv", "train.tsv", "a/x.csv"])
def test_a_member_of_an_archive_is_chosen_by_name(member: str, archive: Path) -> None:
    assert cells(archive / member) == ROWS


def test_members_are_listed_where_none_or_a_wrong_one_is_chosen(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds \['set/train.tsv', .*: name one as data\.path=.*all\.zip/a/x\.csv$"):
        cells(archive)
    with pytest.raises(DataError, match=r"all\.zip holds no 'val.tsv', but \['set/train.tsv'"):
        cells(archive / "val.tsv")
    with pytest.raises(DataError, match=r"all.zip holds more than one 'x.csv'"):
        cells(archive / "x.csv")
    (tmp_path / "t.csv").write_bytes(text())
    with pytest.raises(DataError, match=r"t\.csv is not a zip archive: there is no train\.tsv"):
        cells(tmp_path / "t.csv" / "train.tsv")


def test_files_that_are_no_tables_are_called_what_they_are(tmp_path: Path) -> None:
    frame, path = pd.DataFrame({"a": [1]}), tmp_path / "t.csv"
    book, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(book, "w") as archive:
        archive.writestr("[Content_Types].xml", "")
        archive.writestr("xl/worksheets/sheet1.xml", "")
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("t.csv"))
    for content, kind in {
        book.getvalue(): "a spreadsheet .*: save it as CSV",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500): "a spreadsheet .*: save it as CSV",
        frame.to_parquet(): "a Parquet file",
        tar.getvalue(): "a tar archive: unpack it",
    }.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"t\.csv is {kind}"):
            read_table(path, columns=["a"])


def test_a_folder_lists_its_tables_of_all_kinds(tmp_path: Path) -> None:
    for name in ["a.tsv", "b.csv.gz", "c.zip", "d.png", "e.txt"]:
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=re.escape("its tables are ['a.tsv', 'b.csv.gz', 'c.zip', 'e.txt']: give data.path")
    ):
        Source("mine", path=str(tmp_path)).locate()


# --- headers ---


def test_columns_without_a_header_are_numbered_or_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a\nb",1\nc,2\n', encoding="utf-8")
    assert cells(path, "1", "2", header=False) == [["a\nb", "1"], ["c", "2"]]
    assert cells(path, "x", "y", header=False, names=["x", "y"]) == [["a\nb", "1"], ["c", "2"]]
    assert read_table(path, columns=["1"], header=False)[LINE].tolist() == [1, 3]
    with pytest.raises(DataError, match=r"line 1 has 2 fields, data\.names 3 names"):
        cells(path, "x", header=False, names=["x", "y", "z"])
    with pytest.raises(DataError, match=r"columns \['3'\] are missing; found \['1', '2'\]"):
        cells(path, "3", header=False)
    with pytest.raises(DataError, match=r"data\.names is for a file without a header: add data\.header=false"):
        cells(path, "x", names=["x", "y"])


def test_the_first_row_of_a_file_without_a_header_is_mended_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'a\0,"1\nb\xff,2\nc,3\n')
    with TableStream(path, [], header=False) as table:
        rows = list(table.rows())
    assert [(row.line, row.fields, row.whole) for row in rows] == [
        (1, ["a", '"1'], False), (2, ["b\ufffd", "2"], True), (3, ["c", "3"], True),
    ]  # fmt: skip
    assert table.met["nul_removed"] == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(titles=st.lists(st.sampled_from(['a "title', "x,y,z", "", "#"]), max_size=4), units=st.integers(0, 3))
def test_lines_before_the_header_and_rows_after_it_are_skipped(titles: list[str], units: int, tmp_path: Path) -> None:
    lines = [*titles, "cat,review", *['m/s,"°\nC"'] * units, *map(",".join, ROWS), ""]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    format = {"skip_lines": len(titles), "skip_after_header": units}
    assert cells(tmp_path / "t.csv", **format) == ROWS
    first = len(titles) + 2 + 2 * units
    assert read_table(tmp_path / "t.csv", columns=["cat"], **format)[LINE].tolist() == [first, first + 1]


def test_a_header_further_down_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"Station,5\nHeight\n\n" + text())
    with pytest.raises(DataError, match=r"line 1: columns .* are missing.* on line 4: try data\.skip_lines=3$"):
        cells(path)
    assert cells(path, skip_lines=3) == ROWS


def test_a_misspelt_column_is_told_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text())
    with pytest.raises(DataError, match=r"\['reveiw'\] are missing.*Did you mean 'review' for 'reveiw'\?"):
        cells(tmp_path / "t.csv", "reveiw")


def test_columns_of_one_name_are_in_nobodys_way_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("cat,x,X,x ,review\n好,1,2,3,很好\n", encoding="utf-8")
    assert cells(path) == [["好", "很好"]]
    assert cells(path, "X") == [["2"]]
    with pytest.raises(DataError, match=r"columns \['x'\] occur more than once"):
        cells(path, "cat", "x")


def test_comments_are_left_out_and_counted_but_not_within_a_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('# a "title\ncat,review\n#x,y\n好,"很\n#好"\n坏,#差\n# end\n', encoding="utf-8")
    assert cells(path, comment="#") == [["好", "很\n#好"], ["坏", "#差"]]
    frame = read_table(path, columns=["cat"], comment="#")
    assert (frame[LINE].tolist(), frame.attrs["comment_lines"]) == ([4, 6], 3)


# --- quotes ---

SIGNS = st.text("ab\"\\', \t", max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(SIGNS.map(lambda cell: cell.replace("\t", "")), st.just("x")), min_size=1, max_size=5))
def test_without_quoting_every_sign_but_the_separator_is_text(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [("cat", "review"), *rows]), encoding="utf-8")
    assert cells(path, quote="none") == [list(row) for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(SIGNS, SIGNS), min_size=1, max_size=5))
def test_escaped_signs_are_read_as_a_writer_has_escaped_them(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, escapechar="\\", doublequote=False, quoting=csv.QUOTE_ALL).writerows(
            [("cat", "review"), *rows]
        )
    found = cells(path, escape="\\") if any("".join(row).strip() for row in rows) else []
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows = rows[:-1]
    assert found == [list(row) for row in rows]


def test_other_quotes_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("cat,review\n'好,''吗''',\"很好\n", encoding="utf-8")
    assert cells(tmp_path / "t.csv", quote="'") == [["好,'吗'", '"很好']]


def test_an_unclosed_quote_names_the_option_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('cat,review\n好,"很好\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 is broken.*where quotes are .* set data\.quote=none"):
        read_table(path, columns=["cat"])
    path.write_text('cat,review\n好,"他说\\"很好\\""\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 is broken.*set data\.escape='\\\\?'"):
        read_table(path, columns=["cat"])
    assert cells(path, escape="\\") == [["好", '他说"很好"']]


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ({"quote": ""}, "data.quote='' must be one character, or none"),
        ({"quote": "''"}, "data.quote"),
        ({"escape": "ab"}, "data.escape='ab' must be one character, or null"),
        ({"comment": ""}, "data.comment is empty"),
        ({"separator": "\n"}, "data.separator"),
        ({"separator": '"'}, "data.separator, data.quote must be different"),
        ({"header": False, "skip_after_header": 1}, "data.skip_after_header is for a file with a header"),
        ({"skip_lines": -1}, "data.skip_lines=-1 must be at least 0"),
        ({"encoding_errors": "ignore"}, "must be one of strict, replace"),
    ],
)
def test_a_format_that_cannot_be_is_refused_by_name(format: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text())
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(tmp_path / "t.csv", columns=[], **format)


# --- bytes that the encoding can't read ---


def damaged(encoding: str, rows: int = 200) -> bytes:
    lines = [f"好{number},很好".encode(encoding) for number in range(rows)]
    return b"\n".join([b"cat,review", *lines[:150], b"x,\xff\xff", *lines[150:], b""])


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_bad_bytes_are_named_with_their_line_and_replaced_on_request(
    encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(damaged(encoding))
    with pytest.raises(DataError, match=r"line 152 \(byte \d+\).*damaged.*data\.encoding_errors=replace$") as caught:
        read_table(path, columns=["cat"], encoding=encoding)
    assert "data.encoding=" not in str(caught.value)
    frame = read_table(path, columns=["cat"], encoding=encoding, encoding_errors="replace")
    assert frame["review"][150] == "\ufffd\ufffd"
    assert frame["review"].drop(150).eq("很好").all()
    assert frame.attrs["replaced_characters"] == 2
    assert "2 character(s) that its encoding can't read are U+FFFD now" in caplog.text


def test_a_wrong_encoding_is_no_damage_even_where_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("cat,review\n好,很好\n坏,太差\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"2 rows are not utf-8: try data\.encoding=gb18030"):
        read_table(path, columns=["cat"], encoding_errors="replace")


# --- blank rows ---


@pytest.mark.parametrize("end", [",\n" * 3, ", \n,\n", ",,,\n,\n\n", "\u3000,\n"])
def test_blank_rows_at_the_end_are_left_out_and_counted(end: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("cat,review\n好,很好\n,\n坏,太差\n" + end, encoding="utf-8")
    frame = read_table(path, columns=["cat"])
    assert frame["cat"].tolist() == ["好", "", "坏"]
    assert frame.attrs["blank_rows_at_end"] == len(end.split())


def test_a_format_is_as_in_training_where_nothing_else_is_given() -> None:
    usual = CsvFormat(separator=";", header=False, names=["a"], skip_lines=2).state()
    given = dict.fromkeys(usual) | {"skip_lines": 0}
    assert CsvFormat.merge(given, usual) == CsvFormat(separator=";", header=False, names=["a"])
    assert CsvFormat.merge({"header": True}, usual) == CsvFormat(separator=";", skip_lines=2)
    assert CsvFormat.merge({}, {"encoding": "gbk", "separator": ","}) == CsvFormat(encoding="gbk", separator=",")
