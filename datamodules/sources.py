"""Find, download, verify and read the files behind a data module."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import logging
import os
import sys
import threading
import time
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# The column that `read_table` adds: where each row starts in the file, 1-based. Names in a header are stripped, so no
# column of a file can have this one.
LINE = " file line"
CONNECT_SECONDS, PROBE_SECONDS, READ_SECONDS = 3, 5, 20
TAB = "\t"
SHOWN = 5  # lines named in a message about many
UTF8_MARKS = ("锘", "ï»¿")  # what begins UTF-8 files from Windows, read as GB18030 and as Latin-1
NAMES, NAME = 20, 40  # column names shown in a message, and characters of each
LONGEST_FIELD = 2**31 - 1  # the reader's own limit would take a text of 131,073 characters for a broken quote
BLOCK = 64  # rows transposed at once: few enough to be gone before the garbage collector looks at them


class DataError(ValueError):
    """The data cannot be used as it is; the message names the file, row or key and what to do about it."""


def one_of(**settings: tuple[str, Sequence[str]]) -> None:
    """Refuse a setting, given as `key=(value, allowed)`, that is not allowed."""
    for key, (value, allowed) in settings.items():
        if value not in allowed:
            raise DataError(f"data.{key}={value!r} must be one of {', '.join(allowed)}")


def at_least(least: float, **settings: float) -> None:
    """Refuse a setting below `least`, or NaN."""
    for key, value in settings.items():
        if not value >= least:
            raise DataError(f"data.{key}={value} must be at least {least}")


@dataclass(frozen=True)
class Source:
    """Where the file of a data set may lie and where it can be had from.

    Attributes:
        name: of the data set, for messages.
        path: a file, or a folder that holds one of `files`; given, nothing else is tried.
        files: file names to look for, best first.
        urls: addresses to download from, tried in order.
        sha256: file name to hash, for the files whose content is known.
        on_missing: `"sample"` falls back to the built-in sample with a warning, `"error"` raises.
        sample: name of the built-in sample; empty if there is none.
        cache_dir: where downloads go; by default the folder of `cache_folder`.
    """

    name: str
    path: str | None = None
    files: Sequence[str] = ()
    urls: Sequence[str] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    on_missing: str = "sample"
    sample: str = ""
    cache_dir: str | None = None

    @property
    def title(self) -> str:
        """`name`, or that of a file of the user's own: it is no run of the data set whose configuration it borrows."""
        path = Path(os.path.expanduser(self.path or ""))
        return self.name if path.is_dir() or path.name in self.files else Path(path_text(path)).stem

    def digest(self) -> str | None:
        """The SHA-256 of the data file; None of the built-in sample. See `locate` for what it raises."""
        path = self.locate()
        return file_sha256(path) if path else None

    def locate(self) -> Path | None:
        """The data file: at `path`, in `$RNN_LAB_DATA`, in the cache, or downloaded; None for the built-in sample.

        Raises:
            DataError: if `path` does not exist, if a known file has another hash than it should, or if the file is
                nowhere to be had and `on_missing` is `"error"`.
        """
        one_of(on_missing=(self.on_missing, ("sample", "error")))
        if self.path is not None:
            return self._verified(self._explicit(Path(os.path.expanduser(self.path)).absolute()))
        if not self.files and not self.urls:
            return None
        cache = cache_folder(self.cache_dir)
        for folder in (*_data_folders(), cache):
            for name in self._names():
                if (folder / name).is_file():
                    return self._verified(folder / name)
        found, failures = self._download(cache)
        if found is not None:
            return found
        self._missing(cache, failures)
        return None

    def _explicit(self, path: Path) -> Path:
        if path.is_file():
            return path
        if not path.is_dir():
            raise DataError(f"{path} does not exist: correct data.path, or leave it out to use {self.name}")
        for name in self.files:
            if (path / name).is_file():
                return path / name
        present = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".csv", ".zip"))
        raise DataError(
            f"the folder {path} holds none of {list(self.files)}; its tables are {present}: "
            "give data.path the file itself"
        )

    def _verified(self, path: Path) -> Path:
        expected = self.sha256.get(path.name)
        found = file_sha256(path) if expected else None
        if expected and found != expected.lower():
            raise DataError(
                f"{path} is not the known file of that name: sha256 {found}, expected {expected}. It may be cut off or "
                "altered: delete it to get it again; if the change is yours, rename the file and give data.path its "
                "new name"
            )
        return path

    def _download(self, folder: Path) -> tuple[Path | None, list[str]]:
        """The downloaded file, or the reason why each address failed."""
        import pooch

        pooch.get_logger().setLevel(logging.WARNING)
        download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(CONNECT_SECONDS, READ_SECONDS))

        def download_checked(*where: Any, **options: Any) -> None:
            download(*where, **options)
            url, target = where[:2]
            # A login page saved under the data's name must not reach the cache, hash known or not.
            if urlparse(url).path.endswith(".zip") and not zipfile.is_zipfile(target):
                raise DataError("what came is not a zip archive")

        failures, unreachable = [], _unreachable(self.urls)
        for url in self.urls:
            if url in unreachable:
                failures.append(f"{url}: {unreachable[url]}")
                continue
            name = self._file_of(url)
            logger.info("downloading %s to %s", url, folder / name)
            known = f"sha256:{self.sha256[name]}" if name in self.sha256 else None
            try:  # pooch writes beside the target, checks the hash, and only then moves the file into place
                return Path(pooch.retrieve(url, known, name, folder, downloader=download_checked)), []
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {error}")
        return None, failures

    def _hash_of(self, url: str) -> str:
        name = self._file_of(url)
        return f" (sha256 {self.sha256[name]})" if name in self.sha256 else ""

    def _names(self) -> list[str]:
        return list(self.files) or [self._file_of(url) for url in self.urls]

    def _file_of(self, url: str) -> str:
        name = PurePosixPath(urlparse(url).path).name
        return name if name in self.files or not self.files else self.files[0]

    def _missing(self, cache: Path, failures: list[str]) -> None:
        wanted = [f"{url} as {cache / self._file_of(url)}{self._hash_of(url)}" for url in self.urls]
        remedy = (
            f"save {' or '.join(wanted) or f'{self.files[0]} in {cache}'}; or set RNN_LAB_DATA to a folder that holds "
            f"one of {self._names()}, or data.path to the file"
        )
        tried = f" ({'; '.join(failures)})" if failures else ""
        if self.on_missing == "sample" and self.sample:
            logger.warning(
                "THE DATA %s IS MISSING AND THE BUILT-IN %s IS USED INSTEAD: scores on it say nothing about the real "
                "data. To get the real data: %s. With data.on_missing=error this is an error.%s",
                self.name, self.sample, remedy, tried,
            )  # fmt: skip
            return
        sample = f"; to try things out without it, run with data={self.sample}" if self.sample else ""
        raise DataError(f"the data {self.name} was not found and could not be downloaded: {remedy}{sample}{tried}")


def read_table(
    path: str | Path, *, columns: Collection[str], encoding: str = "utf-8", separator: str = ","
) -> pd.DataFrame:
    """Read a CSV, or the single CSV inside a zip archive, as text.

    Args:
        path: the file.
        columns: names that must be among the header's, or a mapping from these to the options that chose them, for
            messages; the other columns are returned too.
        encoding: of the text; a byte order mark is accepted.
        separator: between fields, one character, or `tab`.

    Returns:
        A frame of `str` (nothing is read as missing: "NA" and "" stay text) with a RangeIndex, plus the column `LINE`:
        the 1-based line of the file on which each row starts. `frame.attrs["nul_removed"]` counts NUL characters,
        `frame.attrs["unterminated"]` says that the last line lacks its line break, which is also logged.

    Raises:
        DataError: for an unreadable file, with its name, the line and the remedy; no row is ever shifted or padded.
    """
    path, separator = Path(path), {"tab": TAB}.get(separator, separator)
    text = _decode(path, _read_bytes(path), encoding)
    nul_removed = text.count("\0")
    if nul_removed:
        text = text.replace("\0", "")
    header, values, lines = _parse(path, text, separator, columns)
    frame = pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in zip(header, values, strict=True)}, copy=False)
    frame[LINE] = np.asarray(lines, dtype=np.int64)
    unterminated = not text.endswith(("\n", "\r"))
    if unterminated:
        warn_unterminated(path)
    frame.attrs |= {"nul_removed": nul_removed, "unterminated": unterminated}
    return frame


def warn_unterminated(path: Path) -> None:
    """Say that a file may have been cut off."""
    logger.warning("%s does not end with a line break: if it was cut off, its last row is incomplete", path)


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where downloads and derived files are kept: `cache_dir`, `$RNN_LAB_CACHE`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("RNN_LAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("rnn_lab"))


def path_text(path: Path) -> str:
    """`path` as text that can be written as UTF-8, even under a locale that knows ASCII only."""
    return os.fsencode(path).decode("utf-8", "replace")


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _data_folders() -> list[Path]:
    named = os.environ.get("RNN_LAB_DATA")
    if not named:
        return []
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        logger.warning("RNN_LAB_DATA names %s, which is not a folder: correct or unset it", folder)
    return [folder]


def _unreachable(urls: Sequence[str]) -> dict[str, str]:
    """The addresses that do not answer, and why: asked all at once, so that being offline costs seconds only."""
    import requests

    answers: dict[str, str] = {}

    def ask(url: str) -> None:
        try:
            requests.head(url, timeout=(CONNECT_SECONDS, CONNECT_SECONDS), allow_redirects=False)
            answers[url] = ""
        except (OSError, ValueError) as error:
            answers[url] = f"no connection ({type(error).__name__})"

    # Threads, because a name server that never answers is not covered by the timeouts of a connection.
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url: reason for url in urls if (reason := answers.get(url, "no answer"))}


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if data.startswith(b"PK\x03\x04"):
        data = _unzip(path, data)
    elif path.suffix.lower() == ".zip":
        raise DataError(f"{path} is {'empty' if not data else 'not a zip archive'}: delete it and get it again")
    if not data.strip():
        raise DataError(f"{path} is empty: it needs a header and rows")
    return data


def _unzip(path: Path, data: bytes) -> bytes:
    """The bytes of the one CSV in an archive; nothing is unpacked to disk, so no member can land elsewhere."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(table_member(path, archive))
    except DataError:
        raise
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} is a damaged or locked zip archive ({error}): delete it and get it again") from error


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


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
        text.encode()  # some encodings, such as utf-7, let halves of characters pass, which nothing can write
        return text
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if error.reason in ("unexpected end of data", "incomplete multibyte sequence"):
            cause = "the file ends inside a character: it was cut off, get it again"
        elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            cause = "try data.encoding=utf-16"
        elif _is_utf8(data):
            cause = "it reads as UTF-8, try data.encoding=utf-8"
        else:
            cause = "try data.encoding=gb18030 (Chinese) or data.encoding=latin-1 (Western European)"
        raise DataError(f"{path}, line {line} (byte {error.start}) is not {encoding}: {cause}") from error
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read with data.encoding={encoding!r}: use utf-8, gb18030 or latin-1 ({error})"
        ) from error


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse(
    path: Path, text: str, separator: str, columns: Collection[str]
) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, values column by column, and the line each row starts on; blank lines are skipped."""
    header: list[str] = []
    values: list[list[str]] = []
    lines: list[int] = []
    block: list[list[str]] = []
    wrong: list[tuple[int, int]] = []
    end = 0
    csv.field_size_limit(LONGEST_FIELD)
    try:
        # strict: a stray quote is an error here, where otherwise it could swallow the rows up to the next one.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            start, end = end + 1, reader.line_num
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                check_header(path, header, columns, separator)
                values = [[] for _ in header]
                continue
            if len(row) != len(header):
                wrong.append((start, len(row)))
                continue
            lines.append(start)
            block.append(row)
            if len(block) == BLOCK:
                _flush(block, values)
    except TypeError as error:
        raise DataError(f"data.separator={separator!r} must be one character, or tab") from error
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that starts on line {end + 1} is broken ({error}): a quote in it is never closed or not "
            "doubled, or the file was cut off"
        ) from error
    _flush(block, values)
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} row(s) do not have the header's {len(header)} fields: "
            + ", ".join(f"line {line} has {fields}" for line, fields in wrong[:SHOWN])
            + (", …" if len(wrong) > SHOWN else "")
            + f". Quote fields that contain {separator!r} or a line break; a short last row means a cut-off file"
        )
    if not lines:
        raise DataError(f"{path} is empty: it needs a header and rows")
    return header, values, lines


def _flush(block: list[list[str]], values: list[list[str]]) -> None:
    # Block by block: half a million living row lists would cost seconds of garbage collection.
    for column, part in zip(values, zip(*block, strict=True), strict=False):
        column.extend(part)
    block.clear()


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
