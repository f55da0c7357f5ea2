from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import sources
from datamodules.sources import LINE, DataError, Source, read_table

TABLE = "cat,review\n书籍,很好\n酒店,不错\n"


def zipped(text: str = TABLE, member: str = "reviews.csv") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


GOOD = zipped()
SHA256 = hashlib.sha256(GOOD).hexdigest()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        kind = self.path.split("/")[1]
        if kind == "silent":
            time.sleep(2)
            return
        content = {"good": GOOD, "tampered": zipped(TABLE + "x,y\n"), "login": b"<html>", "cut": GOOD[:60]}.get(kind)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(GOOD if kind == "cut" else content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNN_LAB_DATA", raising=False)


def source(tmp_path: Path, urls: list[str] | None = None, **options: object) -> Source:
    keys = {"on_missing": "error", "sample": "sample_reviews", "cache_dir": str(tmp_path / "cache")} | options
    return Source("reviews", files=["reviews.zip"], urls=urls or [], **keys)  # type: ignore[arg-type]


def left_in_cache(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").glob("*")]


# --- where the file is found ---


def test_a_source_without_path_files_and_urls_is_the_sample_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert Source("sample_reviews", sample="sample_reviews").locate() is None
    assert not caplog.records


def test_a_file_of_the_users_own_gives_its_name_and_a_folder_or_known_file_that_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "reviews.zip").write_bytes(GOOD)
    (tmp_path / "mine.csv").write_text(TABLE, encoding="utf-8")
    for path, title in (
        (None, "reviews"),
        ("~/folder", "reviews"),
        ("~/folder/reviews.zip", "reviews"),
        ("~/mine.csv", "mine"),
    ):
        assert source(tmp_path, path=path).title == title
    assert source(tmp_path, path="~/folder").locate() == tmp_path / "folder" / "reviews.zip"


def test_path_wins_over_data_folder_and_data_folder_over_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("given", "data", "cache"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "reviews.zip").write_bytes(GOOD)
    assert source(tmp_path).locate() == tmp_path / "cache" / "reviews.zip"
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path / "data"))
    assert source(tmp_path).locate() == tmp_path / "data" / "reviews.zip"
    assert source(tmp_path, path=str(tmp_path / "given")).locate() == tmp_path / "given" / "reviews.zip"


def test_an_absent_path_is_an_error_and_never_the_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist.*data\.path"):
        source(tmp_path, path=str(tmp_path / "nowhere.csv"), on_missing="sample").locate()


def test_a_folder_without_the_files_lists_the_tables_it_has(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(DataError, match=r"none of \['reviews\.zip'\]; its tables are \['other\.csv'\]"):
        source(tmp_path, path=str(tmp_path)).locate()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"?" + b[41:]], ids=["truncated", "altered"])
def test_a_known_file_with_another_hash_is_an_error_with_both_hashes(tmp_path: Path, damage) -> None:
    (tmp_path / "reviews.zip").write_bytes(damage(GOOD))
    with pytest.raises(DataError, match=f"expected {SHA256}") as caught:
        source(tmp_path, path=str(tmp_path), sha256={"reviews.zip": SHA256}).locate()
    assert hashlib.sha256(damage(GOOD)).hexdigest() in str(caught.value)


def test_a_data_folder_that_does_not_exist_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path / "gone"))
    source(tmp_path, on_missing="sample").locate()
    assert "RNN_LAB_DATA" in caplog.records[0].message


def test_spaces_and_chinese_in_paths_work(tmp_path: Path, server: str) -> None:
    folder = tmp_path / "我的 数据"
    found = source(tmp_path, [f"{server}/good/reviews.zip"], cache_dir=str(folder)).locate()
    assert found == folder / "reviews.zip"
    assert read_table(folder / "reviews.zip", columns=["cat"])["review"].tolist() == ["很好", "不错"]


# --- downloads ---


def test_a_download_is_kept_and_used_again_without_the_network(tmp_path: Path, server: str) -> None:
    found = source(tmp_path, [f"{server}/good/reviews.zip"], sha256={"reviews.zip": SHA256}).locate()
    assert found is not None
    assert found.read_bytes() == GOOD
    assert source(tmp_path, [f"http://127.0.0.1:{closed_port()}/reviews.zip"]).locate() == found


def test_a_source_of_addresses_alone_is_cached_under_the_name_in_the_address(tmp_path: Path, server: str) -> None:
    def locate(address: str) -> Path | None:
        return Source("reviews", urls=[address], on_missing="error", cache_dir=str(tmp_path)).locate()

    assert locate(f"{server}/good/some.zip") == tmp_path / "some.zip"
    assert locate(f"http://127.0.0.1:{closed_port()}/some.zip") == tmp_path / "some.zip"


@pytest.mark.parametrize(
    ("kind", "hashed"), [("tampered", True), ("login", False), ("login", True), ("cut", False), ("404", False)]
)
def test_a_bad_download_is_rejected_and_leaves_the_cache_clean(
    tmp_path: Path, server: str, kind: str, hashed: bool
) -> None:
    known = {"reviews.zip": SHA256} if hashed else {}
    with pytest.raises(DataError, match=f"{server}/{kind}/reviews.zip: "):
        source(tmp_path, [f"{server}/{kind}/reviews.zip"], sha256=known).locate()
    assert left_in_cache(tmp_path) == []


def test_the_next_mirror_is_tried(tmp_path: Path, server: str) -> None:
    urls = [f"http://127.0.0.1:{closed_port()}/reviews.zip", f"{server}/tampered/reviews.zip", f"{server}/good/x.zip"]
    found = source(tmp_path, urls, sha256={"reviews.zip": SHA256}).locate()
    assert found is not None
    assert found.read_bytes() == GOOD


def test_without_a_connection_the_error_says_all_a_user_needs(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/reviews.zip"
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        source(tmp_path, [url], sha256={"reviews.zip": SHA256}).locate()
    assert time.monotonic() - start < 10
    for needed in (url, str(tmp_path / "cache" / "reviews.zip"), SHA256, "data=sample_reviews", "RNN_LAB_DATA"):
        assert needed in str(caught.value)


def test_without_a_connection_the_sample_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/reviews.zip"
    assert source(tmp_path, [url], on_missing="sample").locate() is None
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for needed in ("reviews IS MISSING", "sample_reviews", url, "data.on_missing=error"):
        assert needed in warning.getMessage()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.3)  # the deadline over all addresses, name look-up included
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer"):
        source(tmp_path, [f"{server}/silent/reviews.zip"]).locate()
    assert time.monotonic() - start < 1.5


# --- tables ---


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
    frame = read_table(write(tmp_path_factory.getbasetemp(), buffer.getvalue()), columns=["c", "b"])
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


@pytest.mark.parametrize("members", [["a.csv", "b.csv"], ["readme.txt"]])
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


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, datamodules\n"
        "assert not {'torch', 'pandas', 'pytorch_lightning'} & set(sys.modules)\n"
        "datamodules.DataError\n"
        "assert not {'torch', 'pytorch_lightning', 'jieba', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
