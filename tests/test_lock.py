"""The lock holds one version of everything, with its hashes, and pip takes nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"]
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}")


def entries(lock: Path) -> dict[Requirement, list[str]]:
    text = lock.read_text(encoding="utf-8").replace(" \\\n", "\n")
    parts = re.findall(r"^[a-z].*\n(?:    .*\n)+", text, re.MULTILINE)
    assert "".join(parts) == "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    return {Requirement(first): hashes for first, *hashes in map(str.splitlines, parts)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_everything_is_pinned_and_has_hashes(lock: Path) -> None:
    for requirement, hashes in entries(lock).items():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert all(map(HASH.fullmatch, hashes)), requirement


def test_what_the_project_asks_for_is_locked() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    locked = entries(LOCKS[0])
    wanted = [Requirement(line) for line in re.findall(r'^  "([a-z][\w.-]*[\[>][^"]*)",', text, re.MULTILINE)]
    assert {"torch", "pytest"} <= {each.name for each in wanted}
    for requirement in wanted:
        versions = [str(next(iter(each.specifier)).version) for each in locked if each.name == requirement.name]
        assert versions, requirement
        assert all(map(requirement.specifier.contains, versions)), (requirement, versions)


def test_the_malicious_twin_of_lightning_is_never_installed() -> None:
    assert "lightning" not in {requirement.name for lock in LOCKS for requirement in entries(lock)}


@pytest.mark.slow
@pytest.mark.parametrize("is_changed", [False, True], ids=["as it is", "with a hash changed"])
def test_pip_installs_a_file_of_the_locked_hash_alone(is_changed: bool, tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "-r"]
    assert f"$(PY) -m pip install {' '.join(options)} requirements.lock" in recipe
    (requirement, hashes), *_ = [(name, found) for name, found in entries(LOCKS[0]).items() if name.name == "tabulate"]
    if is_changed:
        hashes = [each[:-1] + ("0" if each[-1] != "0" else "1") for each in hashes]
    lock = tmp_path / "one.lock"
    lock.write_text(" \\\n".join([str(requirement), *hashes]) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(tmp_path / "site"),
        *options,
        str(lock),
    ]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version" in outcome.stderr:
        pytest.skip("no package index here")
    assert outcome.returncode == int(is_changed), outcome.stderr
    assert ("DO NOT MATCH THE HASHES" in outcome.stderr) == is_changed
    assert (tmp_path / "site" / "tabulate").exists() != is_changed
