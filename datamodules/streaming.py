"""Tables larger than memory: row after row, whatever a row holds, and how far into the file it is."""

from __future__ import annotations

import codecs
import csv
import io
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from .sources import TAB, DataError, check_header, table_member

LONGEST = 1_000_000  # characters of a field, and of a line times 4: what is longer is no table
TRIED = 1000  # rows by which a wrong encoding is told from a few damaged characters
LOST, NUL = "\udcff", "\udc00"  # what can't be decoded, and NUL, on their way through the reader; no text holds them
ODD = re.compile("[\0\ud800-\udfff]")

codecs.register_error("rnn_lab.lost", lambda error: (LOST, error.end))  # pyright: ignore[reportAttributeAccessIssue]


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
    """The rows of a CSV, or of the single CSV inside a zip archive, read once, in order, in flat memory.

    A row is never dropped. One with too few fields is filled up, the last field of one with too many keeps the rest; of
    a row whose quote is never closed, only its first line belongs to it. These are not `whole`. Two stray quotes may
    make one row of several, which is to be told from a text of several lines by a guess alone: a row each of whose
    lines has as many separators as the header has a note, and is `whole`. Characters that the encoding can't read
    become U+FFFD, NULs are removed, blank lines are no rows (unless there is but one column). If most of the first rows
    can't be read, the encoding is wrong, which is an error.

    Args:
        path: the file.
        columns: names that the header must hold, each with the option that chose it, for messages.
        encoding: of the text; a byte order mark is accepted.
        separator: between fields, one character, or `tab`.

    Attributes:
        header: the columns' names.
        size: bytes of the table; of a zip archive, unpacked.

    Raises:
        DataError: on entering or on the way, for a file that can't be read; the message names it, the line, the remedy.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str], encoding: str = "utf-8", separator: str = ","):
        self.path, self.encoding, self.separator = Path(path), encoding, {"tab": TAB}.get(separator, separator)
        self.columns = columns
        self.header: list[str] = []
        self.size = 0
        self._line = 0  # lines handed out to whole records
        self._odd = False  # whether the record at hand holds what has to be mended
        self._again: deque[str] = deque()  # lines to be read once more
        self._taken: list[str] = []  # lines of the record at hand

    def __enter__(self) -> TableStream:
        with ExitStack() as stack:
            self._raw = stack.enter_context(self._open(stack))
            try:
                self._text = io.TextIOWrapper(self._raw, self.encoding, "rnn_lab.lost", newline="")
            except (LookupError, ValueError) as error:
                raise self._unreadable(error) from error
            self._records = self._read_records()
            line, names, _ = next(self._records, (1, [], False))
            if not names:
                raise DataError(f"{self.path} is empty: it needs a header and rows")
            if any(LOST in name for name in names):
                raise self._not_encoded(line)
            self.header = [ODD.sub("", name).strip() for name in names]
            check_header(self.path, self.header, self.columns, self.separator)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._raw.tell()

    def rows(self) -> Iterator[Row]:
        """Every row of the file."""
        tried: list[Row] | None = []
        for row in map(self._row, self._records):
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

    def _row(self, record: tuple[int, list[str], bool]) -> Row:
        line, fields, closed = record
        width = len(self.header)
        several = closed and len(self._taken) > 1 and self._like_rows()
        if closed and not self._odd and not several and len(fields) == width:  # as good as every row
            return Row(line, fields, "", True)
        notes = [] if closed else ["a quote is never closed"]
        if len(fields) != width:
            if closed:
                notes.append(f"row has {len(fields)} fields, the header has {width}")
            rest = self.separator.join(fields[width - 1 :])
            fields = [*fields, *[""] * (width - len(fields))] if len(fields) < width else [*fields[: width - 1], rest]
        whole = not notes
        if several:
            notes.append("its quotes may enclose other rows")
        if self._odd:
            text = "".join(fields)
            if removed := text.count(NUL):
                notes.append(f"NULs removed: {removed}")
            fields = [ODD.sub("\ufffd", field.replace(NUL, "")) for field in fields]
            if lost := len(ODD.findall(text)) - removed:
                notes.append(f"characters that are not {self.encoding}: {lost}")
        return Row(line, fields, "; ".join(notes), whole)

    def _like_rows(self) -> bool:
        """Whether each line of the record at hand might be a row."""
        separators = len(self.header) - 1
        return separators > 0 and all(line.count(self.separator) == separators for line in self._taken)

    def _check_encoding(self, rows: list[Row]) -> None:
        foreign = [row for row in rows if not all(map(str.isascii, row.fields))]
        bad = [row for row in foreign if "characters that are not" in row.note]
        if len(bad) > len(foreign) / 2 and len(foreign) > 1:
            raise self._not_encoded(bad[0].line)

    def _read_records(self) -> Iterator[tuple[int, list[str], bool]]:
        """The line that a record starts on, its fields, and whether all its quotes are closed."""
        csv.field_size_limit(LONGEST)
        while True:
            try:
                # strict: a stray quote is an error, where otherwise it would swallow the rows up to the next one.
                reader = csv.reader(self._lines(), delimiter=self.separator, strict=True)
            except TypeError as error:
                raise DataError(f"data.separator={self.separator!r} must be one character, or tab") from error
            try:
                yield from self._of(reader)
                return
            except csv.Error:
                first, *rest = self._taken  # the record is its first line, and reading goes on behind it
                self._again.extendleft(reversed(rest))
                self._odd = ODD.search(first) is not None
                self._line += 1
                yield self._line, first.rstrip("\r\n").split(self.separator), False

    def _of(self, reader: Any) -> Iterator[tuple[int, list[str], bool]]:
        while True:
            self._taken.clear()
            self._odd = False
            fields = next(reader, None)
            if fields is None:
                return
            start = self._line + 1
            self._line += len(self._taken)
            if fields or len(self.header) == 1:
                yield start, fields or [""], True

    def _lines(self) -> Iterator[str]:
        while line := self._next_line():
            if ODD.search(line) is not None:
                self._odd = True
                line = line.replace("\0", NUL)
            self._taken.append(line)
            yield line

    def _next_line(self) -> str:
        if self._again:
            return self._again.popleft()
        try:
            line = self._text.readline(4 * LONGEST)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.path} is a damaged zip archive ({error}): get it again") from error
        except UnicodeError as error:
            raise self._unreadable(error) from error
        if len(line) == 4 * LONGEST:
            line_number = self._line + len(self._taken) + 1
            raise DataError(f"{self.path}, line {line_number} has {len(line):,} characters and more: is it a CSV?")
        return line if self._line or self._taken else line.removeprefix("\ufeff")

    def _open(self, stack: ExitStack) -> IO[bytes]:
        try:
            with self.path.open("rb") as file:
                zipped = file.read(4) == b"PK\x03\x04" or self.path.suffix.lower() == ".zip"
            self.size = self.path.stat().st_size
            if not zipped:
                return self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            member = archive.getinfo(table_member(self.path, archive))
            self.size = member.file_size
            return archive.open(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
            raise DataError(f"{self.path} is a damaged or locked zip archive ({error}): get it again") from error

    def _not_encoded(self, line: int) -> DataError:
        with self.path.open("rb") as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        others = "gb18030 (Chinese) or data.encoding=latin-1 (Western European)"
        remedy = "utf-16" if marked else others if self.encoding.lower().startswith("utf") else f"utf-8, {others}"
        return DataError(f"{self.path}, line {line} and others are not {self.encoding}: try data.encoding={remedy}")

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot be read with data.encoding={self.encoding!r}: use utf-8, gb18030 or latin-1 ({error})"
        )
