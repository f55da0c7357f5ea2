"""Files that are written whole or not at all, in folders that others may write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runs import checkpoints
from runs.checkpoints import replacing, write_atomically

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, links and limits of POSIX")


def run_script(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with `path` as its argument."""
    command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{script}", path]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "last.ckpt"
    victim.write_text("precious")
    monkeypatch.setattr(checkpoints.secrets, "token_hex", lambda size: "guessed")
    for name in (f".last.ckpt.{os.getpid()}", f".last.ckpt.{os.getpid()}.guessed"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new")
    assert victim.read_text() == "precious"
    assert not path.exists()


def test_two_temporary_files_have_different_names(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first.name != second.name


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_kill_inside_a_write_leaves_the_old_file_and_the_next_write_removes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    killed = run_script(
        "import os\nfrom runs.checkpoints import replacing\nwith replacing(path) as file:\n"
        "    file.write(b'new' * 100_000)\n    file.flush()\n    os.kill(os.getpid(), 9)",
        path,
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    write_atomically(path, b"newer")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == b"newer"


def test_a_full_disk_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    full = run_script(
        "import resource, signal\nfrom runs.checkpoints import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(path, b'new' * 100_000)",
        path,
    )
    assert full.returncode == 1
    assert f"File too large: '{path}'" in full.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == b"old"
