"""Mutated files: each is refused with a message, or read as an independent plain reading (csv and Decimal) reads it.

`FUZZ_SEED` chooses other files; a failure prints the seed and the file.
"""

from __future__ import annotations

import csv
import io
import math
import os
import random
import re
import time
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import corpus
from datamodules.cleaning import clean
from datamodules.recordings import NO_READING
from datamodules.sources import DataError
from datamodules.streaming import LINE, TableStream, read_table

SEED = int(os.environ.get("FUZZ_SEED", "0"))
BLOCK = 1000
QUICK, ALL = range(0, 150), [range(start, start + BLOCK) for start in range(150, 10_150, BLOCK)]
TIME_FORMAT = "%Y-%m-%d %H:%M"
LONGEST = 5.0  # seconds a file of 40 rows may take
NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

BYTES = [b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b";", b"\\", b"'", b" ", b"-", b".", b"#"]
BYTES += ["，".encode(), "\u200b".encode(), "\u00a0".encode(), "\u2028".encode(), "\x85".encode(), b"\x1a", b"\xe4\xb8"]
CELLS = [
    "",
    " ",
    "NA",
    "nan",
    "-9999",
    "1e400",
    "1e-400",
    "inf",
    "0x1F",
    "1_000",
    "１２",
    "−5",
    "+7",
    "5.",
    ".5",
    "1e3",
    "1,5",
]
CELLS += [
    "00012",
    "9007199254740993",
    "0.1234567890123456789",
    "123456789.123456789",
    "4.9e-324",
    "179e306",
    "١٢",
    "1 000",
]
CELLS += [
    "2020-02-30 00:00",
    "2020-01-01 24:00",
    "2020-1-5 3:00",
    "01.02.2020 00:00",
    "1600-01-01 00:00",
    "TRUE",
    "好",
    "=1+1",
]
CELLS += ['a"b', '"', '""', "a\nb", "a,b", "a\0b", "\ufeffa", "\u200b", "\ud7ff", "😀", "x" * 300, "#", "…", "- -"]


def text_file(random_state: random.Random) -> str:
    rows = [
        (random_state.choice("甲乙丙"), f"好用，{number}“不错”" * random_state.randint(0, 3)) for number in range(40)
    ]
    rows[7] = ("乙", 'says "quoted", and\nmore')
    return as_csv([("cat", "review"), *rows])


def series_file(random_state: random.Random) -> str:
    rows = [
        (f"2020-01-{1 + hour // 24:02d} {hour % 24:02d}:00", repr(round(random_state.gauss(10, 5), 3)), str(hour), "A")
        for hour in range(40)
    ]
    return as_csv([("time", "x", "y", "note"), *rows])


def as_csv(rows: list[Any]) -> str:
    buffer = io.StringIO(newline="")
    stand_in = "\ue000"  # Python 3.10's csv doesn't write NUL
    csv.writer(buffer, lineterminator="\n").writerows([cell.replace("\0", stand_in) for cell in row] for row in rows)
    return buffer.getvalue().replace(stand_in, "\0")


def mutate(text: str, random_state: random.Random) -> bytes:
    """One to four changes of cells, rows, columns or bytes."""
    rows = [list(row) for row in csv.reader(io.StringIO(text, newline=""))]
    for _ in range(random_state.randint(0, 2)):
        random_state.choice((_cell, _cell, _row, _column))(rows, random_state)
    data = as_csv(rows).encode("utf-8", "replace")
    for _ in range(random_state.randint(0, 2)):
        data = _bytes(data, random_state)
    return data


def _cell(rows: list[list[str]], random_state: random.Random) -> None:
    row = random_state.choice(rows)
    row[random_state.randrange(len(row))] = random_state.choice(CELLS)


def _row(rows: list[list[str]], random_state: random.Random) -> None:
    at, other = random_state.randrange(1, len(rows)), random_state.randrange(1, len(rows))
    match random_state.randrange(6):
        case 0:
            rows.insert(other, rows[at].copy())
        case 1:
            rows[at], rows[other] = rows[other], rows[at]
        case 2:
            rows[at].append("extra")
        case 3:
            rows[at].pop()
            rows[at] = rows[at] or [""]
        case 4:
            rows.append([""] * len(rows[0]))
        case _:
            del rows[at]


def _column(rows: list[list[str]], random_state: random.Random) -> None:
    at = random_state.randrange(min(len(row) for row in rows))
    choice = random_state.randrange(4)
    for number, row in enumerate(rows):
        if choice == 0:
            row.insert(at, row[at])  # a name twice
        elif choice == 1:
            row.insert(0, row.pop(at))
        elif choice == 2 and len(row) > 1:
            del row[at]
        elif choice == 3:
            row.insert(at, "" if number else random_state.choice(("", "other", "评论")))


def _bytes(data: bytes, random_state: random.Random) -> bytes:
    at, end = sorted(random_state.randrange(len(data) + 1) for _ in range(2))
    match random_state.randrange(6):
        case 0:
            return data[:at] + random_state.choice(BYTES) + data[at:]
        case 1:
            return data[:at] + data[at + random_state.randint(1, 4) :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at : min(end, at + 60)] * 2 + data[min(end, at + 60) :]
        case 4:
            return data[:at] + bytes([random_state.randrange(256)]) + data[at + 1 :]
        case _:
            return data.replace(b"\n", random_state.choice((b"\r\n", b"\r", b"\n\n", b"\n"))) or b"\n"


def plain_reading(data: bytes) -> dict[int, list[str]] | None:
    """The fields of each row of a table, header included, by the line on which it starts; None if it isn't one."""
    try:
        text = data.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""), strict=True)
        rows, line, width = {}, 1, 0
        for fields in reader:
            if fields or width == 1:  # a blank line is a row of a single column only
                rows[line] = fields or [""]
            width = width or len(fields)
            line = reader.line_num + 1
        return rows
    except (UnicodeDecodeError, csv.Error):
        return None


def plain_number(cell: str) -> float:
    """The number of a cell, NaN for no reading; raises ValueError."""
    cell = unicodedata.normalize("NFKC", cell).replace("\N{MINUS SIGN}", "-").strip()
    if cell.lower() in NO_READING or not any(map(str.isalnum, cell.replace("_", ""))):
        return math.nan
    if not NUMERAL.fullmatch(cell):
        raise ValueError(cell)
    number = float(Decimal(cell))
    return math.nan if number == -9999 else number


def plain_time(cell: str) -> np.datetime64:
    cell, midnight = cell.strip(), timedelta(days=" 24:00" in cell)
    return np.datetime64(datetime.strptime(cell.replace(" 24:00", " 00:00"), TIME_FORMAT) + midnight)


def check_texts(path: Path) -> bool:
    """Whether the file was read, and then as the plain reading reads it."""
    data = path.read_bytes()
    frame = read_table(path, columns={"cat": "data.target", "review": "data.text_column"})
    rows = plain_reading(data)
    assert rows is not None, "a broken table was read"
    (_, header), *body = rows.items()
    names = [name.replace("\ufeff", "").strip() for name in header]
    while body and not any(field.strip() for field in body[-1][1]):  # blank rows at the end are none
        body.pop()
    places = [names.index(name) for name in ("cat", "review")]
    got = list(zip(frame[LINE].tolist(), frame["cat"], frame["review"], strict=True))
    assert got == [(line, *(fields[place] for place in places)) for line, fields in body]
    texts, _ = corpus.clean(frame, "review", "cat", path.name, unlabelled="drop")
    wanted = [tuple(corpus.clean_text(fields[place]) for place in places) for _, fields in body]
    wanted = list(dict.fromkeys(pair for pair in wanted if all(pair)))
    assert list(zip(texts.labels, texts.texts, strict=True)) == wanted
    return True


def check_rows_of_predict(path: Path) -> bool:
    """Whether the file was read by the tolerant reader: a row without a note is as the plain reading has it."""
    data = path.read_bytes()
    with TableStream(path, {"review": "text_column"}) as table:
        got = list(table.rows())
    if (rows := plain_reading(data)) is not None:
        for row in got:
            if row.whole and not row.note:
                assert row.fields == rows[row.line], row.line
        seen = {row.line for row in got}
        lost = [line for line, fields in [*rows.items()][1:] if line not in seen and any(map(str.strip, fields))]
        assert not lost, f"rows lost at lines {lost}"
    return True


def check_series(path: Path) -> bool:
    """Whether the file was read: every time and number is that of its line, and every row is counted."""
    data = path.read_bytes()
    columns = ["x", "y"]
    needed = dict.fromkeys(columns, "data.features") | {"time": "data.time_column"}
    frame = read_table(path, columns=needed)
    series = clean(
        frame, time_column="time", time_format=TIME_FORMAT, columns=columns, missing_values=[-9999], source=path.name
    )
    rows = plain_reading(data)
    assert rows is not None, "a broken table was read"
    header = [name.replace("\ufeff", "").strip() for name in rows[min(rows)]]
    place = {name: header.index(name) for name in ("time", *columns)}
    for number, line in enumerate(series.lines.tolist()):
        fields = rows[line]
        assert series.times[number] == plain_time(fields[place["time"]]), line
        wanted = [plain_number(fields[place[name]]) for name in columns]
        np.testing.assert_array_equal(series.values[number], wanted, err_msg=f"line {line}")
    report = series.report
    body = [fields for line, fields in sorted(rows.items())[1:]]
    while body and not any(field.strip() for field in body[-1]):
        body.pop()
    assert report["rows_read"] == len(body)
    lost = report["resampled_away"] + report["duplicates"] + report["off_grid"]
    assert len(series.times) + lost == len(body)
    return True


def check_message(message: str, path: Path) -> None:
    assert path.name in message, message
    assert len(message.splitlines()) == 1, message


KINDS: dict[str, tuple[Callable[[random.Random], str], Callable[[Path], bool]]] = {
    "texts": (text_file, check_texts),
    "predict": (text_file, check_rows_of_predict),
    "series": (series_file, check_series),
}


def fuzz(kind: str, cases: range, folder: Path) -> int:
    """How many of the cases were read rather than refused."""
    write, check = KINDS[kind]
    read = 0
    for case in cases:
        random_state = random.Random(f"{SEED} {kind} {case}")
        data = mutate(write(random_state), random_state)
        path = folder / "表.csv"
        path.write_bytes(data)
        started = time.perf_counter()
        try:
            read += check(path)
        except DataError as error:
            check_message(str(error), path)
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={SEED}, {kind} {case}: {data!r}") from error
        assert time.perf_counter() - started < LONGEST, f"FUZZ_SEED={SEED}, {kind} {case} took too long"
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_file_is_read_exactly_or_refused(kind: str, tmp_path: Path) -> None:
    read = fuzz(kind, QUICK, tmp_path)
    assert read > len(QUICK) / 10  # the mutations aren't so harsh that nothing would be compared


@pytest.mark.exhaustive
@pytest.mark.parametrize("cases", ALL, ids=lambda cases: f"from{cases.start}")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutated_files_are_read_exactly_or_refused(kind: str, cases: range, tmp_path: Path) -> None:
    fuzz(kind, cases, tmp_path)
