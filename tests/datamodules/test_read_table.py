from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.sources import DataError, Source
from datamodules.streaming import LINE, read_table
from tests.datamodules.conftest import TABLE, zipped

GOOD = zipped()


def write(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


TEXT = st.text(st.sampled_from('ab,"\n 不\ufeff;'), max_size=6) | st.sampled_from(["NA", "null", "None", "nan", "1.0"])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=200))
def test_any_table_is_read_back_as_text_with_its_lines(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["a", " b ", "c"])
    lines = []
    for row in rows:
        lines.append(buffer.getvalue().count("\n") + 1)
        writer.writerow(row)
    path = write(tmp_path_factory.getbasetemp(), buffer.getvalue())
    while rows and not any(cell.strip() for cell in rows[-1]):  # as spreadsheets leave them
        del rows[-1], lines[-1]
    if not rows:
        with pytest.raises(DataError, match="is empty"):
            read_table(path, columns=["c", "b"])
        return
    frame = read_table(path, columns=["c", "b"])
    assert list(frame[["a", "b", "c"]].itertuples(index=False, name=None)) == rows
    assert frame[LINE].tolist() == lines
    assert frame.index.tolist() == list(range(len(rows)))


@pytest.mark.parametrize("content", [TABLE.encode("utf-8-sig"), TABLE.replace("\n", "\r\n").encode()])
def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path, content: bytes) -> None:
    frame = read_table(write(tmp_path, content), columns=["cat"])
    assert frame[["cat", "review"]].to_numpy().tolist() == [["书籍", "很好"], ["酒店", "不错"]]


def test_blank_lines_are_skipped_and_lines_still_count(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "a,b\n\n1,2\n\n3,4\n\n"), columns=["a"])[LINE].tolist() == [3, 5]


def test_nul_characters_are_removed_and_counted(tmp_path: Path) -> None:
    frame = read_table(write(tmp_path, "a,b\nx\0,y\0z\n"), columns=["a"])
    assert frame[["a", "b"]].to_numpy().tolist() == [["x", "yz"]]
    assert frame.attrs["nul_removed"] == 2


def test_missing_and_duplicate_columns_are_listed_with_those_found(tmp_path: Path) -> None:
    path = write(tmp_path, "cat, text,cat\n1,2,3\n")
    with pytest.raises(DataError, match=r"t\.csv, line 1: columns \['review'\] are missing; columns \['cat'\] occur"):
        read_table(path, columns=["review", "cat"])


def test_another_separator_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path, "cat;review\na;b\n")
    with pytest.raises(DataError, match=r"Try data\.separator=';'"):
        read_table(path, columns=["review"])
    assert read_table(path, columns=["review"], separator=";")["review"].tolist() == ["b"]


@pytest.mark.parametrize("separator", ["", ";;", "\n"])
def test_a_separator_must_be_one_character(tmp_path: Path, separator: str) -> None:
    with pytest.raises(DataError, match=r"data\.separator"):
        read_table(write(tmp_path, TABLE), columns=["cat"], separator=separator)


@pytest.mark.parametrize("bad", ["x,y,z", "x"], ids=["long", "short"])
@pytest.mark.parametrize("position", [0, 3, 9])
def test_long_and_short_rows_are_named_and_nothing_shifts(tmp_path: Path, bad: str, position: int) -> None:
    rows = ['"a\n",b'] * 10  # each takes two lines
    rows[position] = bad
    with pytest.raises(DataError, match=rf"1 row\(s\).*2 fields: line {2 + 2 * position} has {bad.count(',') + 1}\."):
        read_table(write(tmp_path, "a,b\n" + "\n".join(rows) + "\n"), columns=["a"])


def test_many_bad_rows_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"40 row\(s\).*line 2 has 3, .*line 6 has 3, …"):
        read_table(write(tmp_path, "a,b\n" + "1,2,3\n" * 40), columns=["a"])


@pytest.mark.parametrize("row", ['x,"never closed', 'x,"closed" too early', 'x,"a\nb\nc'])
def test_a_stray_quote_names_the_line_where_its_row_starts(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"row that starts on line 4 is broken"):
        read_table(write(tmp_path, f'a,b\n1,"2\n2"\n{row}\n5,6\n'), columns=["a"])


def test_rows_between_two_stray_quotes_are_counted_and_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swallowed = ['a,"good', "b,bad", 'c,fine"']  # legal, and one row
    lines = ["x,y", 'a,"a text', "", 'of its own"', *swallowed, "d,ok", *swallowed]
    frame = read_table(write(tmp_path, "\n".join(["label,text", *lines, ""])), columns=["text"])
    assert frame["text"].tolist() == ["y", "a text\n\nof its own", "good\nb,bad\nc,fine", "ok", "good\nb,bad\nc,fine"]
    assert (frame.attrs["enclosing_rows"], frame.attrs["first_enclosing_line"]) == (2, 6)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"t\.csv, line 6: .* its quotes may enclose other rows \(2 such", warning)


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1"])
def test_another_encoding_is_suggested_with_line_and_byte(tmp_path: Path, encoding: str) -> None:
    word = "很好" if encoding == "gb18030" else "très"
    content = f"a,b\n1,2\n3,{word}\n".encode(encoding)
    byte = content.index(b"3,") + (2 if encoding == "gb18030" else 4)
    with pytest.raises(DataError, match=rf"line 3 \(byte {byte}\) is not utf-8: try.*data\.encoding={encoding}"):
        read_table(write(tmp_path, content), columns=["a"])
    assert read_table(write(tmp_path, content), columns=["a"], encoding=encoding)["b"].tolist() == ["2", word]


def test_a_file_that_reads_as_utf_8_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,海尔\n".encode())
    with pytest.raises(DataError, match=r"is not ascii: it reads as UTF-8, try data\.encoding=utf-8"):
        read_table(path, columns=["a"], encoding="ascii")


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "latin-1", "cp1252"])
@pytest.mark.parametrize("first", ["", "text", "内容"])
def test_a_utf_8_file_with_its_mark_is_recognised_where_another_encoding_reads_it_too(
    encoding: str, first: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"{first},b\n1,ab\n".encode("utf-8-sig"))
    with pytest.raises(DataError, match=r"UTF-8.* try data\.encoding=utf-8"):
        read_table(path, columns=["b"], encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-9", "utf\0", "utf-7", "base64", "undefined"])
def test_an_encoding_that_cannot_serve_is_named(tmp_path: Path, encoding: str) -> None:
    lone_surrogate = b"cat,review\na,+2AA-\n"
    with pytest.raises(DataError, match=r"t\.csv cannot be read with data\.encoding='" + encoding.replace("\0", ".+")):
        read_table(write(tmp_path, lone_surrogate), columns=["cat"], encoding=encoding)


def test_a_utf_16_file_is_recognised_and_never_printed_whole(tmp_path: Path) -> None:
    path = write(tmp_path, (TABLE * 500).encode("utf-16"))
    with pytest.raises(DataError, match=r"try data\.encoding=utf-16"):
        read_table(path, columns=["cat"])
    with pytest.raises(DataError, match=r"\['cat'\] are missing") as caught:
        read_table(path, columns=["cat"], encoding="utf-16-be")
    assert len(str(caught.value)) < 400
    assert read_table(path, columns=["cat"], encoding="utf-16")["cat"].iloc[0] == "书籍"


def test_of_many_columns_found_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path, ",".join(f"c{i}" for i in range(500)) + "\n")
    with pytest.raises(DataError, match=r"found \['c0', .* 'c19'\] and 480 more\."):
        read_table(path, columns=["cat"])


def test_a_very_long_field_is_read(tmp_path: Path) -> None:
    frame = read_table(write(tmp_path, f"a,b\n1,{'x' * 200_000}\n"), columns=["a"])
    assert frame["b"].str.len().tolist() == [200_000]


def test_columns_without_a_name_are_in_nobodys_way_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,,\n1,2,,\n")
    assert read_table(path, columns=["a", "b"])[["a", "b"]].to_numpy().tolist() == [["1", "2"]]
    with pytest.raises(DataError, match=r"columns \[''\] occur more than once"):
        read_table(path, columns=["a", ""])


@pytest.mark.parametrize("name", ["file line", LINE])
def test_a_column_of_any_name_leaves_the_line_numbers_alone(tmp_path: Path, name: str) -> None:
    frame = read_table(write(tmp_path, f"a,{name}\nx,y\n"), columns=["a"])
    assert frame[LINE].tolist() == [2]
    assert frame["file line"].tolist() == ["y"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"a,b\n"])
def test_a_table_without_rows_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.csv is empty"):
        read_table(write(tmp_path, content), columns=[])


def test_a_table_cut_anywhere_is_an_error_or_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = ("cat,review\n" + "".join(f'书{i},"很好，\n第{i}本 ""好"""\n' for i in range(20))).encode()
    rows = read_table(write(tmp_path, full), columns=["cat"])[["cat", "review"]].to_numpy().tolist()
    errors = []
    for cut in range(12, len(full), len(full) // 41):
        caplog.clear()
        path = write(tmp_path, full[:cut])
        try:
            found = read_table(path, columns=["cat"])[["cat", "review"]].to_numpy().tolist()
        except DataError as error:
            errors.append(str(error))
        else:
            assert found[:-1] == rows[: len(found) - 1]
            assert found == rows[: len(found)] or "does not end with a line break" in caplog.text
        with pytest.raises(DataError, match="expected"):
            Source("t", path=str(path), sha256={"t.csv": hashlib.sha256(full).hexdigest()}).locate()
    assert len(errors) > 20
    assert all(re.search(r"t\.csv.*(line \d+|is empty)", error) for error in errors)


def test_a_file_cut_inside_a_character_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3.*ends inside a character"):
        read_table(write(tmp_path, TABLE.encode()[:-2]), columns=["cat"])


# --- archives ---


@pytest.mark.parametrize("cut", [5, 40, 100, len(GOOD) - 1])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, cut: int) -> None:
    with pytest.raises(DataError, match=r"reviews\.zip is a damaged"):
        read_table(write(tmp_path, GOOD[:cut], "reviews.zip"), columns=["cat"])


def test_a_page_under_the_name_of_an_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a zip archive"):
        read_table(write(tmp_path, "<html>", "reviews.zip"), columns=["cat"])


def test_a_flipped_byte_anywhere_in_compressed_rows_is_noticed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", "cat,review\n" + "".join(f'书{i},"{i * 7919}"\n' for i in range(2000)))
        end = archive.start_dir
    for at in range(40, end, end // 20):
        damaged = bytearray(buffer.getvalue())
        damaged[at] ^= 0xFF
        with pytest.raises(DataError, match=r"r\.zip is a damaged"):
            read_table(write(tmp_path, bytes(damaged), "r.zip"), columns=["cat"])


def test_a_flipped_bit_inside_an_archive_is_noticed(tmp_path: Path) -> None:
    at = GOOD.index("很好".encode())
    with pytest.raises(DataError, match="damaged"):
        read_table(write(tmp_path, GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :], "r.zip"), columns=["cat"])


def test_reading_an_archive_writes_nothing_wherever_its_member_points(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = write(inner, zipped(member="../../evil.csv"), "r.zip")
    before = sorted(tmp_path.rglob("*"))
    assert len(read_table(path, columns=["cat"])) == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("members", [["a.csv", "b.csv"], ["a.tsv", "b.txt"], ["readme.md"]])
def test_an_archive_must_hold_exactly_one_table(tmp_path: Path, members: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for member in members:
            archive.writestr(member, TABLE)
    with pytest.raises(DataError, match="exactly one .csv.*" + members[0]):
        read_table(tmp_path / "r.zip", columns=["cat"])


def test_what_a_mac_adds_to_archives_is_ignored(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("数据/评论.CSV", TABLE)
        archive.writestr("__MACOSX/数据/._评论.csv", b"\x00\x05")
    assert len(read_table(tmp_path / "r.zip", columns=["cat"])) == 2
