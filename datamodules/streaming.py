"""Tables: whole, or row after row in flat memory, whatever a row holds, for those larger than that."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd

from .sources import DataError

logger = logging.getLogger(__name__)

# The column that `read_table` adds: where each row starts in the file, 1-based. Names in a header are stripped, so no
# column of a file can have this one.
LINE = " file line"
TAB = "\t"
SHOWN = 5  # lines named in a message about many
UTF8_MARKS = ("锘", "ï»¿")  # what begins UTF-8 files from Windows, read as GB18030 and as Latin-1
NAMES, NAME = 20, 40  # column names shown in a message, and characters of each
BLOCK = 64  # rows transposed at once: few enough to be gone before the garbage collector looks at them
LONGEST = 1_000_000  # characters of a field, and of a line times 4: what is longer is no table
TRIED = 1000  # rows by which a wrong encoding is told from a few damaged characters
START = 1 << 20  # bytes by which another encoding is suggested
LOST = "\udcff"  # what can't be decoded, on its way through the reader; no text holds it
ODD = re.compile("[\0\ud800-\udfff]")
UNCLOSED, ENCLOSES = "a quote is never closed", "its quotes may enclose other rows"

codecs.register_error("rnn_lab.lost", lambda error: (LOST, error.end))  # pyright: ignore[reportAttributeAccessIssue]


def read_table(
    path: str | Path, *, columns: Collection[str], encoding: str = "utf-8", separator: str = ","
) -> pd.DataFrame:
    """Read a CSV, or the single CSV inside a zip archive, as text; see `TableStream` for the arguments.

    Returns:
        A frame of `str` (nothing is read as missing: "NA" and "" stay text) with a RangeIndex, plus the column `LINE`:
        the 1-based line of the file on which each row starts. Its `attrs` are what the stream `met`, which is logged.

    Raises:
        DataError: for an unreadable file, with its name, the line and the remedy; no row is ever shifted or padded.
    """
    lines: list[int] = []
    wrong: list[tuple[int, int]] = []
    with TableStream(path, columns, encoding, separator, strict=True) as table:
        width = len(table.header)
        values: list[list[str]] = [[] for _ in table.header]
        while block := list(islice(table.records, BLOCK)):
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
    names = table.header
    frame = pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in zip(names, values, strict=True)}, copy=False)
    frame[LINE] = np.asarray(lines, dtype=np.int64)
    frame.attrs |= table.met
    warn(table.path, table.met)
    return frame


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
        columns: names that the header must hold, or a mapping from these to the options that chose them, for messages.
        encoding: of the text; a byte order mark is accepted.
        separator: between fields, one character, or `tab`.
        strict: a quote that is never closed is an error, and so is, before any row, a character that the encoding can't
            read; all of the file is then in memory.

    Attributes:
        header: the columns' names.
        size: bytes of the table; of a zip archive, unpacked.
        records: what `rows` mends: the line on which each row starts, its fields, and what is wrong with its quotes.
        met: on the way so far: NULs removed, whether the last line lacks its line break, how many rows' quotes may
            enclose other rows, and where the first of these starts (0: nowhere).

    Raises:
        DataError: on entering or on the way, for a file that can't be read; the message names it, the line, the remedy.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Collection[str],
        encoding: str = "utf-8",
        separator: str = ",",
        strict: bool = False,
    ) -> None:
        self.path, self.encoding, self.separator = Path(path), encoding, {"tab": TAB}.get(separator, separator)
        self.columns, self.strict = columns, strict
        self.header: list[str] = []
        self.size = 0
        self.met = {"nul_removed": 0, "unterminated": False, "enclosing_rows": 0, "first_enclosing_line": 0}
        self._line = 0  # lines handed out to whole records
        self._odd = False  # whether the record at hand holds what has to be mended
        self._nuls = 0  # removed from it
        self._again: deque[str] = deque()  # lines to be read once more
        self._taken: list[str] = []  # lines of the record at hand

    def __enter__(self) -> TableStream:
        with ExitStack() as stack:
            self._raw = stack.enter_context(self._open(stack))
            try:
                self._text = self._decoded()
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                where = f"line {line} (byte {error.start}) is"
                if error.reason in ("unexpected end of data", "incomplete multibyte sequence"):
                    cause = "the file ends inside a character: it was cut off, get it again"
                    raise DataError(f"{self.path}, {where} not {self.encoding}: {cause}") from error
                raise self._not_encoded(where) from error
            except (LookupError, ValueError) as error:
                raise self._unreadable(error) from error
            self.records = self._read_records()
            line, names, _ = next(self.records, (1, [], ""))
            if not names:
                raise DataError(f"{self.path} is empty: it needs a header and rows")
            if any(LOST in name for name in names):
                raise self._not_encoded(f"line {line} and others are")
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
            try:
                # strict: a stray quote is an error, where otherwise it would swallow the rows up to the next one.
                reader = csv.reader(self._lines(), delimiter=self.separator, strict=True)
            except (TypeError, ValueError) as error:  # from Python 3.13 on the latter, for a line break
                raise DataError(f"data.separator={self.separator!r} must be one character, or tab") from error
            try:
                yield from self._of(reader)
                return
            except csv.Error as error:
                if self.strict:
                    raise DataError(
                        f"{self.path}: the row that starts on line {self._line + 1} is broken ({error}): a quote in it "
                        "is never closed or not doubled, or the file was cut off"
                    ) from error
                first, *rest = self._taken  # the record is its first line, and reading goes on behind it
                self._again.extendleft(reversed(rest))
                self._odd, self._nuls = ODD.search(first) is not None, first.count("\0")
                self.met["nul_removed"] += self._nuls
                self._line += 1
                yield self._line, first.replace("\0", "").rstrip("\r\n").split(self.separator), UNCLOSED

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
        while line := self._next_line():
            self._taken.append(line)
            self.met["unterminated"] = line[-1] not in "\r\n"
            if ODD.search(line) is not None:
                self._odd = True
                self._nuls += line.count("\0")
                line = line.replace("\0", "")
            yield line

    def _next_line(self) -> str:
        if self._again:
            return self._again.popleft()
        try:
            line = self._text.readline(4 * LONGEST)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.path} is a damaged zip archive ({error}): delete it and get it again") from error
        except UnicodeError as error:
            raise self._unreadable(error) from error
        if len(line) == 4 * LONGEST:
            line_number = self._line + len(self._taken) + 1
            raise DataError(f"{self.path}, line {line_number} has {len(line):,} characters and more: is it a CSV?")
        return line if self._line or self._taken else line.removeprefix("\ufeff")

    def _decoded(self) -> IO[str]:
        if not self.strict:
            return io.TextIOWrapper(self._raw, self.encoding, "rnn_lab.lost", newline="")
        text = self._raw.read().decode(self.encoding)
        text.encode()  # some encodings, such as utf-7, let halves of characters pass, which nothing can write
        return io.StringIO(text, newline="")

    def _open(self, stack: ExitStack) -> IO[bytes]:
        """The table's bytes; nothing is unpacked to disk, so no member of an archive can land elsewhere."""
        try:
            with self.path.open("rb") as file:
                mark = file.read(4)
            self.size = self.path.stat().st_size
            if mark != b"PK\x03\x04" and self.path.suffix.lower() != ".zip":
                return io.BytesIO(self.path.read_bytes()) if self.strict else self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if mark != b"PK\x03\x04":
            raise DataError(f"{self.path} is {'not a zip archive' if mark else 'empty'}: delete it and get it again")
        try:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            member = archive.getinfo(table_member(self.path, archive))
            self.size = member.file_size
            return io.BytesIO(archive.read(member)) if self.strict else archive.open(member)
        except DataError:
            raise
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
            remedy = "delete it and get it again"
            raise DataError(f"{self.path} is a damaged or locked zip archive ({error}): {remedy}") from error

    def _not_encoded(self, where: str) -> DataError:
        """With the encoding to try, judged by the table's beginning."""
        with ExitStack() as stack:
            start = stack.enter_context(self._open(stack)).read(START)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            cause = "try data.encoding=utf-16"
        elif not codecs.lookup(self.encoding).name.startswith("utf-8") and _is_utf8(start):
            cause = "it reads as UTF-8, try data.encoding=utf-8"
        else:
            cause = "try data.encoding=gb18030 (Chinese) or data.encoding=latin-1 (Western European)"
        return DataError(f"{self.path}, {where} not {self.encoding}: {cause}")

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot be read with data.encoding={self.encoding!r}: use utf-8, gb18030 or latin-1 ({error})"
        )


def check_header(path: Path, header: list[str], columns: Collection[str], separator: str) -> None:
    """Raise a DataError unless the header holds each of `columns` once; see `read_table`."""
    if header and header[0].startswith(UTF8_MARKS):
        raise DataError(f"{path} begins with the mark of a UTF-8 file, so that is what it is: try data.encoding=utf-8")
    options = columns if isinstance(columns, Mapping) else {}
    missing = [name for name in columns if name not in header]
    chosen = sorted({options[name] for name in missing if name in options})
    remedy = "Rename them in the file, or name others with " + (", ".join(chosen) or "the data options")
    # Columns without a name, such as a spreadsheet leaves on the right, harm nobody while nobody asks for them.
    duplicated = sorted({name for name in header if header.count(name) > 1 and (name or name in columns)})
    if not missing and not duplicated:
        return
    other = next((s for s in ",;\t|" if s != separator and len(header) == 1 and s in header[0]), None)
    raise DataError(
        f"{path}, line 1:"
        + (f" columns {_few(missing)} are missing;" if missing else "")
        + (f" columns {_few(duplicated)} occur more than once;" if duplicated else "")
        + f" found {_few(header)}."
        + (f" Try data.separator={'tab' if other == TAB else repr(other)}" if other else f" {remedy}")
    )


def _few(names: Sequence[str]) -> str:
    """Column names for a message; read in the wrong encoding, a whole file may seem to be one of them."""
    shown = [name if len(name) <= NAME else name[:NAME] + "…" for name in names[:NAMES]]
    return f"{shown}" + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


def table_member(path: Path, archive: zipfile.ZipFile) -> str:
    """The name of the one CSV in an archive.

    Raises:
        DataError: there is none, or more than one.
    """
    names = [i.filename for i in archive.infolist() if not i.is_dir() and _is_table(PurePosixPath(i.filename))]
    if len(names) != 1:
        contents = archive.namelist()[:10]
        raise DataError(
            f"{path} must hold exactly one .csv file, but holds {contents}: unpack it and give data.path the file"
        )
    return names[0]


def _is_table(member: PurePosixPath) -> bool:
    # Archives made on a Mac carry a "__MACOSX/._name.csv" beside each file.
    return member.suffix.lower() == ".csv" and member.parts[0] != "__MACOSX" and not member.name.startswith("._")


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # which may end inside a character
    except UnicodeDecodeError:
        return False
    return True
