"""How a table is written, and its bytes, of a file or of a member of an archive; quick to import."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .sources import DataError, archive_of, at_least, one_of, table_member, table_suffix

TAB = "\t"
WIND = ("wind_x", "wind_y")  # features that are made of columns of wind
COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}
ZIP = b"PK\x03\x04"
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)
OTHER_KINDS = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a spreadsheet (or another Office file): save it as CSV UTF-8",
    b"PAR1": "a Parquet file: write it as CSV, in Python with pandas.read_parquet(…).to_csv(…, index=False)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it and give data.path the CSV inside",
    b"Rar!": "a RAR archive: unpack it and give data.path the CSV inside",
    b"SQLite format 3\0": "a database: export the table as CSV",
    b"%PDF": "a PDF document: export the table as CSV",
}
"""How files that are no tables begin, and what to do about them."""


@dataclass(frozen=True)
class CsvFormat:
    r"""How a table is written.

    Attributes:
        encoding: of the text; a byte order mark is accepted.
        encoding_errors: `strict`, or `replace`: what `encoding` can't read becomes U+FFFD.
        separator: between fields, one character, or `tab`; None: a tab in a file called .tsv or .tab, else a comma.
        quote: around fields that hold a separator; `none`: quotes are characters like any others.
        escape: what stands before a character that is to be taken as it is, as in `\"`.
        comment: lines that begin with it are left out.
        header: whether the first row has the names of the columns, which else are `names`, or 1, 2, 3 and so on.
        skip_lines: lines left out before anything else.
        skip_after_header: rows left out after the header, such as one of units.

    Raises:
        DataError: these don't go together.
    """

    encoding: str = "utf-8"
    encoding_errors: str = "strict"
    separator: str | None = None
    quote: str = '"'
    escape: str | None = None
    comment: str | None = None
    header: bool = True
    names: Sequence[str] = ()
    skip_lines: int = 0
    skip_after_header: int = 0

    def __post_init__(self) -> None:
        one_of(encoding_errors=(self.encoding_errors, ("strict", "replace")))
        at_least(0, skip_lines=self.skip_lines, skip_after_header=self.skip_after_header)
        object.__setattr__(self, "names", tuple(map(str, self.names or ())))
        remedies = {"separator": "tab", "quote": "none: no field is quoted", "escape": "null: nothing is escaped"}
        signs = {name: getattr(self, name) for name in remedies if getattr(self, name) not in (None, "tab", "none")}
        for name, sign in signs.items():
            if len(sign) != 1 or sign in "\r\n\0":
                raise DataError(f"data.{name}={sign!r} must be one character, or {remedies[name]}")
        if len(set(signs.values())) < len(signs):
            raise DataError(f"{', '.join(f'data.{name}' for name in signs)} must be different characters")
        if self.comment is not None and not self.comment:
            raise DataError("data.comment is empty: give what comments begin with, or null: there are none")
        if self.names and self.header:
            raise DataError("data.names is for a file without a header: add data.header=false, or rename its columns")
        if self.skip_after_header and not self.header:
            raise DataError("data.skip_after_header is for a file with a header: use data.skip_lines instead")

    def separator_in(self, name: str) -> str:
        """The separator in a file of that name."""
        if self.separator is None:
            return TAB if table_suffix(PurePosixPath(name)) in (".tsv", ".tab") else ","
        return TAB if self.separator == "tab" else self.separator

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def merge(cls, given: Mapping[str, Any], usual: Mapping[str, Any]) -> CsvFormat:
        """The format of which some parts are `given`, not None, and others are as in `usual`, if known there."""
        values: dict[str, Any] = {
            part.name: (usual if given.get(part.name) is None else given)[part.name]
            for part in fields(cls)
            if given.get(part.name) is not None or part.name in usual
        }
        if given.get("header"):  # the names are those of files without one
            values["names"] = ()
        return cls(**values)


def text_columns(text_column: str, target: str) -> dict[str, str]:
    """The columns of labelled texts, each with the option that names it."""
    return {text_column: "data.text_column", target: "data.target"}


def time_columns(column: str | Sequence[str] | None) -> list[str]:
    """The columns that hold the time: one, several that make it together, or none."""
    if column is None:
        return []
    return [*map(str, column)] if isinstance(column, Sequence) and not isinstance(column, str) else [str(column)]


def series_columns(
    time_column: str | Sequence[str] | None, target: str, features: Sequence[str], wind: Mapping[str, str] | None
) -> dict[str, str]:
    """The columns of a series, each with the option that names it; those of readings first."""
    columns = dict.fromkeys([target, *features, *(wind or {}).values()], "data.features")
    columns |= dict.fromkeys((wind or {}).values(), "data.wind (null for none)")
    columns |= {target: "data.target"}
    columns |= dict.fromkeys(time_columns(time_column), "data.time_column (null if there are no times)")
    return {name: option for name, option in columns.items() if wind is None or name not in WIND}


@dataclass(frozen=True)
class TableFile:
    """The bytes of a table.

    Attributes:
        raw: to be read.
        name: of the table: the file's, or that of a member of an archive.
        size: bytes that `counted` has when all is read.
        counted: what is read from: a file whose size is known.
    """

    raw: IO[bytes]
    name: str
    size: int
    counted: IO[bytes]


def open_table(path: Path, stack: ExitStack) -> TableFile:
    """The bytes of a table; nothing is unpacked to disk, so no member of an archive can land elsewhere.

    Args:
        path: a plain file, one that gzip, bzip2 or xz has compressed, or a zip archive, told by how it begins; or a
            table in such an archive: `archive.zip/set/train.tsv`.
        stack: closes it.

    Raises:
        DataError: it can't be read, or is no table.
    """
    path, member = archive_of(path)
    try:
        file = stack.enter_context(path.open("rb"))
        mark = file.peek(16)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if mark[:4] == ZIP:
        table = _in_archive(path, member, stack)
    else:
        suffix = next((s for s, begin in COMPRESSED.items() if mark.startswith(begin)), "")
        if path.suffix.lower() in (".zip", *COMPRESSED) and not suffix:
            kind = "zip archive" if path.suffix.lower() == ".zip" else f"{path.suffix} file"
            raise DataError(f"{path} is {f'not a {kind}' if mark else 'empty'}: delete it and get it again")
        if member is not None:
            raise DataError(f"{path} is not a zip archive: there is no {member} in it")
        if suffix == ".bz2" and mark[4:10] != b"1AY&SY":  # a text that begins with these letters
            suffix = ""
        raw: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](file) if suffix else file
        table = TableFile(raw, path.name, size, file)
    try:
        begin = table.raw.peek(512)  # pyright: ignore[reportAttributeAccessIssue]
    except (*DAMAGE, OSError) as error:
        raise damaged(path, error) from error
    kind = next((kind for mark, kind in OTHER_KINDS.items() if begin.startswith(mark)), None)
    if begin[257:262] == b"ustar":
        kind = "a tar archive: unpack it and give data.path the CSV inside"
    if kind is not None:
        raise DataError(f"{path} is {kind}")
    return table


def _in_archive(path: Path, member: str | None, stack: ExitStack) -> TableFile:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        info = archive.getinfo(table_member(path, archive, member))
        raw = stack.enter_context(archive.open(info))
        return TableFile(raw, info.filename, info.file_size, raw)
    except DataError:
        raise
    except (*DAMAGE, RuntimeError, OSError, ValueError) as error:
        remedy = "delete it and get it again"
        raise DataError(f"{path} is a damaged or locked zip archive ({error}): {remedy}") from error


def damaged(path: Path, error: Exception) -> DataError:
    """What to say of a compressed file that can't be unpacked."""
    kind = path.suffix.lower() if path.suffix.lower() in COMPRESSED else "zip"
    name = "zip archive" if kind == "zip" else f"{kind} file"
    return DataError(f"{path} is a damaged {name} ({error}): delete it and get it again")
