"""Find, download and verify the files behind a data module."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SUFFIXES, COMPRESSIONS = (".csv", ".tsv", ".tab", ".txt"), (".gz", ".bz2", ".xz")  # of tables
TABLES = 20  # files named in a message about many
CONNECT_SECONDS, PROBE_SECONDS, READ_SECONDS = 3, 5, 20


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
        others: paths of the files that `val` and `test` have for themselves.
    """

    name: str
    path: str | None = None
    files: Sequence[str] = ()
    urls: Sequence[str] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    on_missing: str = "sample"
    sample: str = ""
    cache_dir: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.files, *map(self._file_of, self.urls)):
            if not name or name in (".", "..") or re.search(r"[/\\:\x00]", name):
                raise DataError(f"data.files={[*self.files]}, data.urls={[*self.urls]}: {name!r} is no plain file name")

    @property
    def title(self) -> str:
        """`name`, or that of a file of the user's own: it is no run of the data set whose configuration it borrows."""
        path = Path(os.path.expanduser(self.path or ""))
        if path.is_dir() or path.name in self.files:
            return self.name
        name = PurePosixPath(path_text(Path(path.name)))
        return PurePosixPath(name.stem).stem if name.suffix.lower() in COMPRESSIONS else name.stem

    def digest(self) -> str | None:
        """The SHA-256 of the data; None of the built-in sample. See `locate_all` for what it raises."""
        files = self.locate_all()
        return files_sha256(files) if files else None

    def locate_all(self) -> dict[str, Path]:
        """The files of the splits, of `train` that of all that have no own; empty for the built-in sample.

        Raises:
            DataError: see `locate`; or a file of another split does not exist.
        """
        file = self.locate()
        return {} if file is None else {"train": file, **self.find_others()}

    def find_others(self) -> dict[str, Path]:
        """The files that splits have for themselves."""
        files = {}
        for split, path in self.others.items():
            files[split] = Path(os.path.expanduser(path)).absolute()
            if not archive_of(files[split])[0].is_file():
                raise DataError(f"{files[split]} does not exist: correct data.{split}_path")
        return files

    def locate(self) -> Path | None:
        """The data file: at `path`, in `$RNN_LAB_DATA`, in the cache, or downloaded; None for the built-in sample.

        Raises:
            DataError: if `path` does not exist, if a known file has another hash than it should, or if the file is
                nowhere to be had and `on_missing` is `"error"`.
        """
        one_of(on_missing=(self.on_missing, ("sample", "error")))
        if (present := self.find()) is not None:
            return self._verified(present)
        if not self.files and not self.urls:
            return None
        cache = cache_folder(self.cache_dir)
        found, failures = self._download(cache)
        if found is not None:
            return found
        self._missing(cache, failures)
        return None

    def find(self) -> Path | None:
        """The data file, unless it must be downloaded first; its content is not looked at.

        Raises:
            DataError: `path` does not exist.
        """
        if self.path is not None:
            return self._explicit(Path(os.path.expanduser(self.path)).absolute())
        if not self.files and not self.urls:
            return None
        folders = (*_data_folders(), cache_folder(self.cache_dir))
        return next((folder / name for folder in folders for name in self._names() if (folder / name).is_file()), None)

    def _explicit(self, path: Path) -> Path:
        if archive_of(path)[0].is_file():
            return path
        if not path.is_dir():
            raise DataError(f"{path} does not exist: correct data.path, or leave it out to use {self.name}")
        for name in self.files:
            if (path / name).is_file():
                return path / name
        present = sorted(
            p.name for p in path.iterdir() if is_table(PurePosixPath(p.name)) or p.suffix.lower() == ".zip"
        )
        few = f"{present[:TABLES]}" + (f" and {len(present) - TABLES} more" if len(present) > TABLES else "")
        others = f"; its tables are {few}: give data.path the file itself" if present else ", nor any other table"
        raise DataError(f"the folder {path} holds none of {list(self.files)}{others}")

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


def table_suffix(name: PurePosixPath) -> str:
    """The suffix of a table, `.csv` of `a.csv` and of `a.csv.gz`, in lower case."""
    return (PurePosixPath(name.stem) if name.suffix.lower() in COMPRESSIONS else name).suffix.lower()


def is_table(name: PurePosixPath) -> bool:
    """Whether that is what a table, plain or compressed, is called."""
    return table_suffix(name) in SUFFIXES


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where downloads and derived files are kept: `cache_dir`, `$RNN_LAB_CACHE`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("RNN_LAB_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else _default_cache()


def is_safe(file: Path) -> bool:
    """Whether a file of the cache is there and only this user, or root, can have written it.

    In a folder that was chosen, and where not everybody may write, it may be another user's: that one shares it.
    """
    try:
        status, folder = file.lstat(), file.parent.stat()
    except OSError:
        return False
    if os.name != "posix":
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IWOTH:
        return False
    is_shared = file.parent != _default_cache() and not folder.st_mode & stat.S_IWOTH
    return is_shared or status.st_uid in (os.geteuid(), 0)


def _default_cache() -> Path:
    import pooch

    return Path(pooch.os_cache("rnn_lab"))


def archive_of(path: Path) -> tuple[Path, str | None]:
    """A file, and what is named inside it: `archive.zip` and `set/train.tsv` of `archive.zip/set/train.tsv`."""
    if not path.exists():
        for parent in path.parents:
            if parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    return path, None


def table_member(path: Path, archive: zipfile.ZipFile, member: str | None = None) -> str:
    """The name of the table in an archive: the `member`, or the only CSV, or, if there is none, the only other table.

    Raises:
        DataError: there is none, or more than one.
    """
    # Archives made on a Mac carry a "__MACOSX/._name.csv" beside each file.
    paths = [PurePosixPath(info.filename) for info in archive.infolist() if not info.is_dir()]
    paths = [one for one in paths if one.parts and one.parts[0] != "__MACOSX" and not one.name.startswith("._")]
    names = [str(one) for one in paths]
    shown = f"{names[:TABLES]}" + (f" and {len(names) - TABLES} more" if len(names) > TABLES else "")
    if "[Content_Types].xml" in names or ("mimetype" in names and "content.xml" in names):
        raise DataError(f"{path} is a spreadsheet (or another Office file): save it as CSV UTF-8")
    if member is not None:
        chosen = [name for name in names if member in (name, PurePosixPath(name).name)]
        if len(chosen) == 1:
            return chosen[0]
        raise DataError(f"{path} holds {'no' if not chosen else 'more than one'} {member!r}, but {shown}")
    tables = [str(one) for one in paths if one.suffix.lower() == ".csv"]
    tables = tables or [str(one) for one in paths if one.suffix.lower() in SUFFIXES]
    if len(tables) == 1:
        return tables[0]
    remedy = f"name one as data.path={path}/{tables[0]}" if tables else "unpack it and give data.path a table"
    raise DataError(f"{path} must hold exactly one .csv file, but holds {shown}: {remedy}")


def path_text(path: Path) -> str:
    """`path` as text that can be written as UTF-8, even under a locale that knows ASCII only."""
    return os.fsencode(path).decode("utf-8", "replace")


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of the content of a file, or of a member of an archive.

    Raises:
        DataError: the archive is damaged.
    """
    path, member = archive_of(path)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        try:
            if member is not None:
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = stack.enter_context(archive.open(table_member(path, archive, member)))
            while block := file.read(1 << 20):
                digest.update(block)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{path} is a damaged or locked zip archive ({error}): get it again") from error
    return digest.hexdigest()


def files_sha256(files: Mapping[str, Path]) -> str:
    """The hash of the files of the splits: if there is one alone, its own."""
    hashes = {split: file_sha256(file) for split, file in files.items()}
    together = "\n".join(f"{split} {sha256}" for split, sha256 in hashes.items())
    return hashes["train"] if len(hashes) == 1 else hashlib.sha256(together.encode()).hexdigest()


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
