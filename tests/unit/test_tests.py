"""How the tests are laid out: what several of them need is a module of its own, and no file of tests is imported."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
IMPORT = re.compile(
    r"^\s*(?:from|import)\s+(?:tests\.(?:\w+\.)*)?test_\w+|^\s*from tests[\w.]* import .*\btest_", re.MULTILINE
)


def test_no_test_imports_another() -> None:
    found = {path.relative_to(TESTS).as_posix(): IMPORT.findall(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_an_import_of_a_test_is_seen() -> None:
    lines = "from tests.unit.{0}b import c", "import tests.{0}b", "from {0}b import c", "from tests.unit import {0}b"
    assert all(IMPORT.search(line.format("test_")) for line in lines)
    assert not IMPORT.search(
        "from tests.unit.integration.fakes import a\nimport testing\nfrom led_sglang.testing import b"
    )
