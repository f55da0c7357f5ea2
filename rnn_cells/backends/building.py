"""Compile a library on first use, and load it again at later starts unless others may have written it."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

log = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
DIGEST = hashlib.sha256().digest_size  # bytes at a library's end, after what the system's loader reads


class BuildError(RuntimeError):
    """Why there is no library."""


def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file, compiled once per source, compiler, flags, CPU and torch version.

    It is kept in `$XDG_CACHE_HOME/rnn_cells` (by default `~/.cache/rnn_cells`). A file there that somebody else may
    have written, or that is damaged, is never loaded: the library is compiled anew, and if it can't be kept there, it
    is compiled at every start. `CXX` chooses the compiler, `RNN_CELLS_CXXFLAGS` adds flags, such as a sanitizer's.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the system doesn't load the library.
    """
    compiler = _compiler()
    flags = [*FLAGS, *shlex.split(os.environ.get("RNN_CELLS_CXXFLAGS", ""))]
    command = [*compiler, *flags, str(source)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    cpu = next((line for line in _cpu_description() if line.startswith("flags")), platform.machine())
    key = "\n".join([source.read_text(encoding="utf-8"), version, cpu, torch.__version__, *compiler, *flags]).encode()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "rnn_cells"
    path = folder / f"{source.stem}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    content = lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "build.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if _is_ours(lock):  # anybody may hold the lock of a file that is anybody's
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes starting together, one compiles, the others wait
        if (library := _load_file(path, key)) is not None:
            return library
        log.warning("compiling the %s backend with %s, once; up to half a minute", source.stem, compiler[0])
        content = _compile(command)
        _write(content + hashlib.sha256(key + content).digest(), path)
        if (library := _load_file(path, key)) is not None:
            return library
        reason: object = f"others can write {path}"
    except OSError as error:
        reason = error
    finally:
        if lock is not None:
            os.close(lock)
    log.warning(
        "the compiled %s backend can't be kept (%s), so that each start compiles it, for up to half a minute: set "
        "XDG_CACHE_HOME to a folder that only you can write",
        *(source.stem, reason),
    )
    with tempfile.TemporaryDirectory() as private:  # what is loaded needs no file any more
        copy = Path(private) / path.name
        copy.write_bytes(content or _compile(command))
        return ctypes.CDLL(str(copy))


def _compiler() -> list[str]:
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']}: {error}") from None
    commands = [chosen] if chosen else [[name] for name in COMPILERS]
    for command in commands:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in commands)
    raise BuildError(f"no C++ compiler ({names}); install one, such as Debian's package g++")


def _compile(command: list[str]) -> bytes:
    """The library, made in a folder that nobody else can enter."""
    with tempfile.TemporaryDirectory() as private:
        library = Path(private) / "library.so"
        result = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            message = (result.stderr.strip().splitlines() or ["no message"])[0]
            raise BuildError(f"it can't be compiled: {' '.join(command)}: {message}")
        return library.read_bytes()


def _write(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, through no link."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    try:
        with open(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _load_file(path: Path, key: bytes) -> ctypes.CDLL | None:
    """The library of a file, if it is there, whole, of this key, and written by this user."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(file, "rb", closefd=False) as stream:
        content = stream.read()
    if not _is_ours(file) or hashlib.sha256(key + content[:-DIGEST]).digest() != content[-DIGEST:]:
        os.close(file)
        return None
    # The file that was looked at, whatever is at `path` by now. It stays open: another one with its number would be
    # taken for it.
    return ctypes.CDLL(f"/proc/self/fd/{file}")


def _is_ours(file: int) -> bool:
    """Whether an open file is a plain one that only this user, or root, has been able to write."""
    status = os.fstat(file)
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def _cpu_description() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
