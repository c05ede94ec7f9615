"""Checks that need a process of their own: Triton decides when it is imported whether it interprets or compiles.

A file of checks is a file of pytest's with `check_` for `test_`. It runs once, whole, under its own environment; a test
in this process tells each of its functions' outcome.
"""

import ast
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[4]


def names(script: Path) -> list[str]:
    """The functions of a file of checks, without running it."""
    functions = (node for node in ast.parse(script.read_text()).body if isinstance(node, ast.FunctionDef))
    return [function.name for function in functions if function.name.startswith("check_")]


def require(script: Path, check: str, **environment: str) -> None:
    """A test's body: one function of a file of checks has passed, every time. The file runs once for all of them."""
    pytest.importorskip("triton")
    faults = outcomes(script, **environment)
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])


@cache
def outcomes(script: Path, **environment: str) -> dict[str, list[str]]:
    """What each check failed with, by its function's name; an empty list for one that passed every time."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-n", "0", "-q", "-p", "no:cacheprovider", "-o", "python_functions=check_*", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, str(script)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert report.exists(), done.stdout + done.stderr
        cases = ElementTree.parse(report).getroot().iter("testcase")
    found: dict[str, list[str]] = {}
    for case in cases:
        faults = [f"{case.get('name')}: {node.text}" for node in case if node.tag in ("failure", "error")]
        skips = [f"{case.get('name')} was skipped" for node in case if node.tag == "skipped"]
        found.setdefault(str(case.get("name")).split("[")[0], []).extend(faults + skips)
    return found
