"""`make faults`: run the tests of every row of docs/faults.md, and print which rows hold."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"


def rows() -> dict[int, tuple[str, list[str]]]:
    """Of each row, the fault and the node ids of its tests, without parameters."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| (\d+) \| (.+?) \| .+ \| (.*)\|", line):
            found[int(match[1])] = (match[2], [f"tests/{test}" for test in re.findall("`([^`]+)`", match[3])])
    return found


def outcomes(report: Path) -> dict[str, Counter[str]]:
    """Of each test function, how many of its cases passed, failed and were skipped."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        for name in (file, f"{file}::{case.attrib['name'].partition('[')[0]}"):
            found.setdefault(name, Counter())[outcome] += 1
    return found


def main(*options: str) -> int:
    """Returns 0 if every row has tests, none of them failed and at least one of each passed."""
    table = Table(box=box.SIMPLE, title="faults")
    for column in ("row", "fault", "test", "passed", "skipped", "failed"):
        table.add_column(column, overflow="fold")
    tests = sorted({test for _, tests in rows().values() for test in tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "", "-n", "auto", "--dist", "loadfile", f"--junitxml={report}"]
        subprocess.run([*command, *options, *tests], cwd=ROOT, check=False)
        results = outcomes(report)
    holding = 0
    for row, (fault, names) in rows().items():
        counts = [results.get(name, Counter()) for name in names]
        holds = bool(counts) and all(count["passed"] and not count["failed"] for count in counts)
        holding += holds
        for place, (name, count) in enumerate(zip(names or ["none"], counts or [Counter()], strict=True)):
            numbers = (str(count[kind] or "") for kind in ("passed", "skipped", "failed"))
            shown = (str(row), fault) if place == 0 else ("", "")
            table.add_row(*shown, name.removeprefix("tests/"), *numbers, style=None if holds else "red")
    console = Console(width=200)
    console.print(table)
    console.print(f"{holding} of {len(rows())} rows hold")
    return 0 if holding == len(rows()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
