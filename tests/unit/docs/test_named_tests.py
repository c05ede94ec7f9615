"""Whoever names a test names one that is there: a reader follows the name, and a moved file is nowhere else missed."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HISTORY = ("CHANGELOG.md", "docs/log.md")  # what they name was there at the time
SUFFIXES = (".md", ".py", ".json", ".toml", ".yaml", ".yml", "")
PATH = re.compile(r"\btests(?:/\w++)++(?:\.py\b)?(?![*<])")  # not of a pattern
MODULE = re.compile(r"\btests(?:\.\w+)+")
FILE = re.compile(r"(?<![\w/.])test_\w+\.py\b")


def texts() -> list[str]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [
        name
        for name in tracked.splitlines()
        if name not in HISTORY and Path(name).suffix in SUFFIXES and not name.startswith("docs/results/")
    ]


def missing(text: str) -> set[str]:
    paths = {path for path in PATH.findall(text) if not (ROOT / path).exists()}
    modules = {name for name in MODULE.findall(text) if not is_module(name)}
    known = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    return paths | modules | {name for name in FILE.findall(text) if name not in known}


def is_module(name: str) -> bool:
    """A module or folder below tests/, or a name inside a module."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or any(p.with_suffix(".py").is_file() for p in (path, path.parent))


def test_every_named_test_exists() -> None:
    names = texts()
    if not names:
        pytest.skip("no git here that knows the files")
    found = {}
    for name in names:
        if gone := missing((ROOT / name).read_text(encoding="utf-8", errors="replace")):
            found[name] = sorted(gone)
    assert not found


def test_a_name_that_is_gone_is_seen() -> None:
    gone = [a + b for a, b in (("tests/unit/", "gone.py"), ("tests.unit.", "gone"), ("test_", "gone.py"))]
    assert missing(" ".join(gone)) == set(gone)
    here = "tests/unit/docs/test_named_tests.py, tests.unit.docs.test_named_tests, test_named_tests.py, tests/unit/docs"
    assert not missing(here)
