"""Write requirements.lock and requirements-cuda.lock: `make lock`, or `make lock ARGS=--upgrade` for the newest.

They hold one version, with the hashes of its files, of everything that pyproject.toml asks for, directly and in turn,
for Python 3.10 and later on Linux, macOS and Windows. A version that they have already stays while it is allowed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, CUDA = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
HEADERS = {
    LOCK: "# The tested versions and the hashes of all their files; pip refuses any other. `make lock` writes it.\n",
    CUDA: "# What the build of torch on PyPI needs for CUDA on Linux, see requirements.lock.\n",
}
ENTRY = re.compile(r"^([a-z0-9-]+)==.*\n(?: .*\n)*", re.MULTILINE)
AVOIDED = "scipy<1.16 ; python_full_version < '3.12'\n"  # which parse their docstrings on import: half a second
CPU_BUILDS = "https://download.pytorch.org/whl/cpu/torch/"


def main() -> None:
    """Resolve, and write what torch needs for CUDA into a lock of its own: other builds of torch need none of it."""
    output = ROOT / "build" / "all.lock"
    output.parent.mkdir(exist_ok=True)
    old = "".join(path.read_text(encoding="utf-8") for path in HEADERS if path.exists())
    pins = [line.removesuffix(" \\") for line in old.splitlines() if re.match("[a-z]", line)]
    output.write_text("\n".join(pins), encoding="utf-8")  # no hashes: uv would take those of a file for all there are
    avoided = output.with_name("avoided.txt")
    avoided.write_text(AVOIDED, encoding="utf-8")
    options = ("--universal", "--python-version=3.10", "--extra=dev", "--generate-hashes", "--no-annotate")
    files = (f"--constraints={avoided}", f"--output-file={output}", "pyproject.toml")
    command = (sys.executable, "-m", "uv", "pip", "compile", *options, "--no-header", "--quiet", *files, *sys.argv[1:])
    subprocess.run(command, cwd=ROOT, check=True)
    entries: dict[Path, list[str]] = {path: [] for path in HEADERS}
    for entry in ENTRY.finditer(output.read_text(encoding="utf-8")):
        is_cuda = entry[1].startswith(("nvidia-", "cuda-"))
        text = with_cpu_builds(entry[0], old) if entry[1] == "torch" else entry[0]
        entries[CUDA if is_cuda else LOCK].append(text)
    for path, header in HEADERS.items():
        path.write_text(header + "".join(entries[path]), encoding="utf-8")


def with_cpu_builds(entry: str, old: str) -> str:
    """The entry of torch with the hashes of the builds without CUDA, which PyPI doesn't have.

    Where their index can't be reached, those that an old lock has of this version stay.
    """
    version = re.match(r"torch==(\S+)", entry)[1]  # type: ignore[index]
    try:
        with urllib.request.urlopen(CPU_BUILDS, timeout=30) as page:
            names = rf"torch-{re.escape(version)}(?:\+|%2B)cpu-[^#\"]*#sha256=([0-9a-f]{{64}})"
            hashes = set(re.findall(names, page.read().decode()))
    except (urllib.error.URLError, TimeoutError) as error:
        same = next((each[0] for each in ENTRY.finditer(old) if each[0].startswith(f"torch=={version} ")), "")
        hashes = set(re.findall("sha256:([0-9a-f]{64})", same))
        print(f"{CPU_BUILDS} can't be reached ({error}): of torch {version}, the hashes of the old lock stay")
    hashes |= set(re.findall("sha256:([0-9a-f]{64})", entry))
    return " \\\n".join([entry.partition(" \\\n")[0], *(f"    --hash=sha256:{each}" for each in sorted(hashes))]) + "\n"


if __name__ == "__main__":
    main()
