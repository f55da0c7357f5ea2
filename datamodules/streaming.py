"""Tables: whole, or row after row in flat memory, whatever a row holds, for those larger than that."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from .formats import DAMAGE, TAB, CsvFormat, damaged, open_table
from .sources import DataError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The column that `read_table` adds: where each row starts in the file, 1-based. Names in a header are stripped, so no
# column of a file can have this one.
LINE = " file line"
SHOWN = 5  # lines named in a message about many
UTF8_MARKS = ("锘", "ï»¿")  # what begins UTF-8 files from Windows, read as GB18030 and as Latin-1
NAMES, NAME = 20, 40  # column names shown in a message, and characters of each
BLOCK = 64  # rows transposed at once: few enough to be gone before the garbage collector looks at them
LONGEST = 1_000_000  # characters of a field, and of a line times 4: what is longer is no table
TRIED = 1000  # rows by which a wrong encoding is told from a few damaged characters
START = 1 << 20  # bytes by which another encoding is suggested
FEW = 0.1  # share of the characters beyond ASCII that an encoding may fail to read in a file that is in it
TITLES = 20  # rows above a header at most
LOST = "\udcff"  # what can't be decoded, on its way through the reader; no text holds it
ODD = re.compile("[\0\ud800-\udfff]")
UNCLOSED, ENCLOSES = "a quote is never closed", "its quotes may enclose other rows"

codecs.register_error("rnn_lab.lost", lambda error: (LOST, error.end))  # pyright: ignore[reportAttributeAccessIssue]


def read_table(path: str | Path, *, columns: Collection[str], **format: Any) -> pd.DataFrame:
    """Read a CSV as text; see `TableStream` for the arguments.

    Rows at the end without anything in them, which spreadsheets leave, are left out and counted.

    Returns:
        A frame of `str` (nothing is read as missing: "NA" and "" stay text) with a RangeIndex, plus the column `LINE`:
        the 1-based line of the file on which each row starts. Its `attrs` are what the stream `met`, which is logged.

    Raises:
        DataError: for an unreadable file, with its name, the line and the remedy; no row is ever shifted or padded.
    """
    import numpy as np  # here, so that a header can be looked at without them
    import pandas as pd

    lines: list[int] = []
    wrong: list[tuple[int, int]] = []
    with TableStream(path, columns, strict=True, **format) as table:
        width = len(table.header)
        values: list[list[str]] = [[] for _ in table.header]
        records = without_blank_end(table.records, table.met, lambda record: record[1])
        while block := list(islice(records, BLOCK)):
            wrong += [(line, len(fields)) for line, fields, _ in block if len(fields) != width]
            lines += [line for line, _, _ in block]
            fields_of_rows = [fields for _, fields, _ in block]
            for column, part in zip(values, zip(*fields_of_rows, strict=False), strict=False):  # `wrong` is told below
                column.extend(part)
    if wrong:
        raise DataError(
            f"{table.path}: {len(wrong)} row(s) do not have the header's {width} fields: "
            + ", ".join(f"line {line} has {fields}" for line, fields in wrong[:SHOWN])
            + (", …" if len(wrong) > SHOWN else "")
            + f". Quote fields that contain {table.separator!r} or a line break; a short last row means a cut-off file"
        )
    if not lines:
        raise DataError(f"{table.path} is empty: it needs a header and rows")
    table.check_replaced(values)
    names = table.header
    frame = pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in zip(names, values, strict=True)}, copy=False)
    frame[LINE] = np.asarray(lines, dtype=np.int64)
    frame.attrs |= table.met
    warn(table.path, table.met)
    return frame


def without_blank_end(rows: Iterator[T], met: dict[str, Any], fields: Callable[[T], Sequence[str]]) -> Iterator[T]:
    """The rows but for the last ones without anything in them, which are counted in `met`."""
    blank: list[T] = []
    for row in rows:
        if any(fields(row)) and any(map(str.strip, fields(row))):
            yield from blank
            blank.clear()
            yield row
        else:
            blank.append(row)
    met["blank_rows_at_end"] = len(blank)


def warn(path: Path, met: Mapping[Any, Any]) -> None:
    """Say what may have cost a file rows, of what a `TableStream` met in it."""
    if met["unterminated"]:
        logger.warning("%s does not end with a line break: if it was cut off, its last row is incomplete", path)
    if count := met["enclosing_rows"]:
        logger.warning(
            "%s, line %d: the row has several lines, each like a row: %s (%d such row(s)). Where they do, remove or "
            "double them",
            path, met["first_enclosing_line"], ENCLOSES, count,
        )  # fmt: skip
    if count := met["replaced_characters"]:
        logger.warning("%s: %d character(s) that its encoding can't read are U+FFFD now", path, count)
    for what in ("comment_lines", "blank_rows_at_end"):
        if met[what]:
            logger.info("%s: %d %s left out", path, met[what], what.replace("_", " "))


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: the 1-based line of the file on which it starts.
        fields: one per column of the header.
        note: what is wrong with it; empty if nothing is.
        whole: whether the fields are known to belong to their columns.
    """

    line: int
    fields: list[str]
    note: str
    whole: bool


class TableStream:
    """The rows of a CSV, plain, compressed or inside a zip archive, read once, in order, in flat memory.

    A row is never dropped. One with too few fields is filled up, the last field of one with too many keeps the rest; of
    a row whose quote is never closed, only its first line belongs to it. These are not `whole`. Two stray quotes may
    make one row of several, which is to be told from a text of several lines by a guess alone: a row each of whose
    lines has as many separators as the header has a note, and is `whole`. Characters that the encoding can't read
    become U+FFFD, NULs are removed, blank lines are no rows (unless there is but one column). If most of the first rows
    can't be read, the encoding is wrong, which is an error.

    Args:
        path: the file.
        columns: names that the header must hold, or a mapping from these to the options that chose them, for messages.
        strict: a quote that is never closed is an error, and so is, before any row, a character that the encoding can't
            read, unless it is to be replaced; all of the file is then in memory.
        format: of `CsvFormat`.

    Attributes:
        header: the columns' names.
        separator: between fields.
        size: bytes of the table; of a zip archive, unpacked.
        records: what `rows` mends: the line on which each row starts, its fields, and what is wrong with its quotes.
        met: on the way so far: NULs removed, whether the last line lacks its line break, how many rows' quotes may
            enclose other rows, and where the first of these starts (0: nowhere), lines of comments, characters
            replaced, and blank rows at the end that `without_blank_end` has left out.

    Raises:
        DataError: on entering or on the way, for a file that can't be read; the message names it, the line, the remedy.
    """

    def __init__(self, path: str | Path, columns: Collection[str], *, strict: bool = False, **format: Any) -> None:
        self.path, self.format = Path(path), CsvFormat(**format)
        self.encoding, self.separator = self.format.encoding, ""
        self.columns, self.strict = columns, strict
        self._replacing = strict and self.format.encoding_errors == "replace"
        self.header: list[str] = []
        self.size = 0
        self.met: dict[str, Any] = {}
        self._line = 0  # lines handed out to whole records
        self._odd = False  # whether the record at hand holds what has to be mended
        self._nuls = 0  # removed from it
        self._again: deque[str] = deque()  # lines to be read once more
        self._taken: list[str] = []  # lines of the record at hand

    def __enter__(self) -> TableStream:
        with ExitStack() as stack:
            self._file = open_table(self.path, stack)
            self.size, self.separator = self._file.size, self.format.separator_in(self._file.name)
            try:
                self._text = self._decoded()
            except UnicodeDecodeError as error:
                line = len(re.findall(rb"\r\n|\r|\n", error.object[: error.start])) + 1
                where = f"line {line} (byte {error.start}) is"
                if error.reason in ("unexpected end of data", "incomplete multibyte sequence"):
                    cause = "the file ends inside a character: it was cut off, get it again"
                    raise DataError(f"{self.path}, {where} not {self.encoding}: {cause}") from error
                raise self._not_encoded(where) from error
            except DAMAGE as error:
                raise damaged(self.path, error) from error
            except (LookupError, ValueError) as error:
                raise self._unreadable(error) from error
            self._start()
            self.records = self._read_records()
            self._read_header()
            self._stack = stack.pop_all()
        return self

    def _start(self) -> None:
        """Go to the first line that counts."""
        self.met = {"nul_removed": 0, "unterminated": False, "enclosing_rows": 0, "first_enclosing_line": 0}
        self.met |= {"comment_lines": 0, "replaced_characters": 0, "blank_rows_at_end": 0}
        for _ in range(self.format.skip_lines):
            self._next_line()
            self._line += 1

    def _read_header(self) -> None:
        line, names, _ = next(self.records, (1, [], ""))
        if not names:
            raise DataError(f"{self.path} is empty: it needs a header and rows")
        if any(LOST in name for name in names):
            raise self._not_encoded(f"line {line} and others are")
        if self.format.header:
            self.header = [ODD.sub("", name).strip() for name in names]
            problem = header_problem(self.header, self.columns, self.separator)
            for _ in range(self.format.skip_after_header if problem is None else 0):
                next(self.records, None)
        else:
            self._again.extendleft(reversed(self._taken[: self._line - line + 1]))  # the row is no header
            self._line = line - 1
            self.met |= {"nul_removed": 0, "enclosing_rows": 0, "first_enclosing_line": 0, "replaced_characters": 0}
            self.header = list(self.format.names) or [str(number + 1) for number in range(len(names))]
            if len(self.header) != len(names):
                raise DataError(
                    f"{self.path}, line {line} has {len(names)} fields, data.names {len(self.header)} names"
                )
            problem = header_problem(self.header, self.columns, self.separator)
        if problem is not None:
            wanted = {*self.columns}
            later = (row for row, fields, _ in islice(self.records, TITLES) if wanted <= {*map(str.strip, fields)})
            if self.format.header and wanted and (row := next(later, None)) is not None:
                problem += f". The header seems to be on line {row}: try data.skip_lines={row - 1}"
            raise DataError(f"{self.path}, line {line}: {problem}")

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._file.counted.tell()

    def rows(self) -> Iterator[Row]:
        """Every row of the file."""
        tried: list[Row] | None = []
        for row in map(self._row, self.records):
            if tried is None:
                yield row
                continue
            tried.append(row)
            if len(tried) == TRIED:
                self._check_encoding(tried)
                yield from tried
                tried = None
        if tried:
            self._check_encoding(tried)
            yield from tried

    def _row(self, record: tuple[int, list[str], str]) -> Row:
        line, fields, quotes = record
        width = len(self.header)
        if not quotes and not self._odd and len(fields) == width:  # as good as every row
            return Row(line, fields, "", True)
        notes = [UNCLOSED] if quotes == UNCLOSED else []
        if len(fields) != width:
            if not notes:
                notes.append(f"row has {len(fields)} fields, the header has {width}")
            rest = self.separator.join(fields[width - 1 :])
            fields = [*fields, *[""] * (width - len(fields))] if len(fields) < width else [*fields[: width - 1], rest]
        whole = not notes
        if quotes == ENCLOSES:
            notes.append(ENCLOSES)
        if self._nuls:
            notes.append(f"NULs removed: {self._nuls}")
        if lost := len(ODD.findall("".join(fields))) if self._odd else 0:
            notes.append(f"characters that are not {self.encoding}: {lost}")
            fields = [ODD.sub("\ufffd", field) for field in fields]
        return Row(line, fields, "; ".join(notes), whole)

    def check_replaced(self, columns: Sequence[Sequence[str]]) -> None:
        """Raise a DataError if most rows of text hold replaced characters: the encoding is another one."""
        if not self.met["replaced_characters"]:
            return
        foreign = [row for row in zip(*columns, strict=True) if not all(map(str.isascii, row))]
        bad = sum("\ufffd" in "".join(row) for row in foreign)
        if bad > len(foreign) / 2 and len(foreign) > 1:
            raise self._not_encoded(f"{bad} rows are")

    def _like_rows(self) -> bool:
        """Whether each line of the record at hand might be a row."""
        separators = len(self.header) - 1
        return separators > 0 and all(line.count(self.separator) == separators for line in self._taken)

    def _check_encoding(self, rows: list[Row]) -> None:
        foreign = [row for row in rows if not all(map(str.isascii, row.fields))]
        bad = [row for row in foreign if "characters that are not" in row.note]
        if len(bad) > len(foreign) / 2 and len(foreign) > 1:
            raise self._not_encoded(f"line {bad[0].line} and others are")

    def _read_records(self) -> Iterator[tuple[int, list[str], str]]:
        csv.field_size_limit(LONGEST)
        while True:
            # strict: a stray quote is an error, where otherwise it would swallow the rows up to the next one.
            reader = csv.reader(self._lines(), delimiter=self.separator, strict=True, **self._quoting())
            try:
                yield from self._of(reader)
                return
            except csv.Error as error:
                if self.strict:
                    raise DataError(
                        f"{self.path}: the row that starts on line {self._line + 1} is broken ({error}): a quote in it "
                        f"is never closed or not doubled, or the file was cut off; {self._quote_remedy()}"
                    ) from error
                first, *rest = self._taken  # the record is its first line, and reading goes on behind it
                self._again.extendleft(reversed(rest))
                self._odd, self._nuls = ODD.search(first) is not None, first.count("\0")
                self.met["nul_removed"] += self._nuls
                self._line += 1
                yield self._line, first.replace("\0", "").rstrip("\r\n").split(self.separator), UNCLOSED

    def _quoting(self) -> dict[str, Any]:
        quote, escape = self.format.quote, self.format.escape
        if quote == "none":
            return {"quoting": csv.QUOTE_NONE, "quotechar": None, "escapechar": escape}
        return {"quotechar": quote, "escapechar": escape}

    def _quote_remedy(self) -> str:
        if self.format.escape is None and any('\\"' in line for line in self._taken):
            return "where a backslash stands before quotes, set data.escape='\\'"
        return "where quotes are characters like any others, set data.quote=none"

    def _of(self, reader: Any) -> Iterator[tuple[int, list[str], str]]:
        while True:
            self._taken.clear()
            self._odd, self._nuls = False, 0
            fields = next(reader, None)
            if fields is None:
                return
            start, quotes = self._line + 1, ""
            self._line += len(self._taken)
            self.met["nul_removed"] += self._nuls
            if len(self._taken) > 1 and self._like_rows():
                quotes = ENCLOSES
                self.met["enclosing_rows"] += 1
                self.met["first_enclosing_line"] = self.met["first_enclosing_line"] or start
            if fields or len(self.header) == 1:
                yield start, fields or [""], quotes

    def _lines(self) -> Iterator[str]:
        comment = self.format.comment
        while line := self._next_line():
            if comment and not self._taken and line.startswith(comment):
                self._line += 1
                self.met["comment_lines"] += 1
                continue
            self._taken.append(line)
            self.met["unterminated"] = line[-1] not in "\r\n"
            if ODD.search(line) is not None:
                self._odd = True
                self._nuls += line.count("\0")
                line = line.replace("\0", "")
                if self._replacing:
                    line, count = ODD.subn("\ufffd", line)
                    self.met["replaced_characters"] += count
            yield line

    def _next_line(self) -> str:
        if self._again:
            return self._again.popleft()
        try:
            line = self._text.readline(4 * LONGEST)
        except (*DAMAGE, OSError) as error:
            raise damaged(self.path, error) from error
        except UnicodeError as error:
            raise self._unreadable(error) from error
        if len(line) == 4 * LONGEST:
            line_number = self._line + len(self._taken) + 1
            raise DataError(f"{self.path}, line {line_number} has {len(line):,} characters and more: is it a CSV?")
        return line if self._line or self._taken else line.removeprefix("\ufeff")

    def _decoded(self) -> IO[str]:
        if not self.strict or self._replacing:
            return io.TextIOWrapper(self._file.raw, self.encoding, "rnn_lab.lost", newline="")
        text = self._file.raw.read().decode(self.encoding)
        text.encode()  # some encodings, such as utf-7, let halves of characters pass, which nothing can write
        return io.StringIO(text, newline="")

    def _not_encoded(self, where: str) -> DataError:
        """With the encoding to try, judged by the table's beginning."""
        with ExitStack() as stack:
            start = open_table(self.path, stack).raw.read(START)
        name = codecs.lookup(self.encoding).name
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not name.startswith("utf-16"):
            cause = "try data.encoding=utf-16"
        elif not name.startswith("utf-8") and _share_lost(start, "utf-8") == 0:
            cause = "it reads as UTF-8, try data.encoding=utf-8"
        elif _share_lost(start, name) < FEW:
            cause = "there the file is damaged: correct it"
        else:
            others = {"gb18030": "Chinese", "latin-1": "Western European"}
            ways = [
                f"data.encoding={other} ({of})" for other, of in others.items() if codecs.lookup(other).name != name
            ]
            cause = f"try {' or '.join(ways)}"
        if self.strict and not self._replacing and "try data.encoding=utf" not in cause:
            cause += "; or read what is not as U+FFFD, with data.encoding_errors=replace"
        return DataError(f"{self.path}, {where} not {self.encoding}: {cause}")

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot be read with data.encoding={self.encoding!r}: use utf-8, gb18030 or latin-1 ({error})"
        )


def header_problem(header: list[str], columns: Collection[str], separator: str) -> str | None:
    """What to say of a header that doesn't hold each of `columns` once; None if it does. See `TableStream`."""
    if header[0].startswith(UTF8_MARKS):
        return "the file begins with the mark of UTF-8, so that is what it is: try data.encoding=utf-8"
    options = columns if isinstance(columns, Mapping) else {}
    missing = [name for name in columns if name not in header]
    duplicated = sorted(name for name in columns if header.count(name) > 1)  # of others nobody needs to know
    if not missing and not duplicated:
        return None
    chosen = sorted({options[name] for name in missing if name in options})
    similar = {name: difflib.get_close_matches(name, header, 1, 0.7) for name in missing}
    meant = ", ".join(f"{close[0]!r} for {name!r}" for name, close in similar.items() if close)
    other = next((s for s in ",;\t|" if s != separator and len(header) == 1 and s in header[0]), None)
    if other is not None:
        remedy = f"Try data.separator={'tab' if other == TAB else repr(other)}"
    else:
        remedy = (f"Did you mean {meant}? " if meant else "") + "Rename them in the file, or name others with "
        remedy += ", ".join(chosen) or "the data options"
    return (
        (f"columns {_few(missing)} are missing;" if missing else "")
        + (" " if missing and duplicated else "")
        + (f"columns {_few(duplicated)} occur more than once;" if duplicated else "")
        + f" found {_few(header)}. {remedy}"
    )


def _few(names: Sequence[str]) -> str:
    """Column names for a message; read in the wrong encoding, a whole file may seem to be one of them."""
    shown = [name if len(name) <= NAME else name[:NAME] + "…" for name in names[:NAMES]]
    return f"{shown}" + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


def _share_lost(start: bytes, encoding: str) -> float:
    """How many of the characters beyond ASCII an encoding can't read at a file's start, which may end inside one."""
    text = codecs.getincrementaldecoder(encoding)("rnn_lab.lost").decode(start)
    return text.count(LOST) / max(1, sum(not character.isascii() for character in text))
