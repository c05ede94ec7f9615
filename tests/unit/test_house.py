"""The house as scripts/import_rules.py says it: every rule holds, a breach of it is seen, and none is idle."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTTP_SIDE = ("led_sglang.wire", "led_sglang.config", "led_sglang.cli", "led_sglang.testing")

sys.path.insert(0, str(ROOT / "scripts"))  # where the script finds its words
rules = importlib.import_module("import_rules")
house_words = importlib.import_module("house_words")
house = rules.House(ROOT)

# The files of a package, each with a module's text, that breaks the rule; a rule may be broken in several ways.
BREACHES: dict[str, list[dict[str, str]]] = {
    "no import cycles": [
        {"ops/a.py": "from led_sglang.ops import b", "ops/b.py": "def f():\n    from led_sglang.ops.a import x"},
        {"ops/a.py": "from . import b", "ops/b.py": "import led_sglang.ops.c", "ops/c.py": "from .a import x"},
    ],
    "wire imports nothing of ours": [{"wire.py": "from led_sglang.config import fields"}],
    "config imports nothing of ours but wire": [{"config/a.py": "from led_sglang import ops"}],
    "wire and config need no heavy library": [{"wire.py": "import numba"}, {"config/a.py": "def f(): import torch.nn"}],
    "ops imports neither config nor what serves": [
        {"ops/a.py": "from led_sglang.config.fields import x"},
        {"ops/a.py": "from ..integration import x"},
        {"ops/a.py": "import sglang.srt"},
    ],
    "kernels are for rows and backends": [
        {"ops/__init__.py": "from led_sglang.ops.kernels.a import x"},
        {"integration/support.py": "def f(): import led_sglang.ops.kernels.a"},
    ],
    "kernels alone import triton": [{"ops/backends/a.py": "import triton.language as tl"}],
    "hooks resolve handlers by name": [
        {"integration/hooks/a.py": "from led_sglang.integration.http import app"},
        {"integration/hooks/a.py": "def f(): from ..scheduler.step import x"},
    ],
    "http never imports scheduler": [
        {"integration/http/a.py": "from led_sglang.integration.scheduler import step"},
        {"integration/http/a.py": "def f(): from led_sglang.integration import scheduler"},
        {"integration/http/a.py": "from typing import *\nif TYPE_CHECKING:\n    from ..scheduler import step"},
    ],
    "scheduler never imports http": [
        {"integration/scheduler/methods/a.py": "import led_sglang.integration.http.app"},
        {"integration/scheduler/a.py": "def f(): from fastapi import x"},
        {"integration/scheduler/a.py": "import typing\nif typing.TYPE_CHECKING:\n    from ..http import app"},
    ],
    "http needs neither ops nor torch": [
        {"integration/http/a.py": "from torch import Tensor"},
        {"integration/http/a.py": "from led_sglang.ops.rows import stats"},
    ],
    "evals talk HTTP and nothing else": [
        {"evals/a.py": "import torch"},
        {"evals/run/a.py": "def f(): import sglang"},
        {"evals/a.py": "from led_sglang.ops import x"},
    ],
    "the CPU platform serves with or without LED": [
        {"cpu_platform/a.py": "from led_sglang.integration import x"},
        {"cpu_platform/a.py": "from led_sglang.ops import x"},
    ],
    "what only developers use is not imported": [
        {"launch.py": "def f(): from training import x"},
        {"evals/a.py": "import benchmarks.soak"},
        {"cli/a.py": "import tests"},
    ],
    "testing is for plugin authors, not for us": [{"trace.py": "from led_sglang import testing"}],
    "integration and the CPU platform alone know SGLang": [
        {"serving/a.py": "def f(): import sglang"},
        {"launch.py": "import sglang.srt.server_args"},
    ],
    "at most 9 Python files in a folder": [{f"cli/a{i}.py": "" for i in range(10)}],
    "no file over 300 lines": [{"cli/a.py": "\n" * 301}],
    "py.typed is there": [{"py.typed": ""}],  # taken away below
    "at most 10 % of integration's parameters are Any": [
        {"integration/a.py": "class C:\n    def f(self, a: Any, *b: int, c: 'Any | None' = None): pass"},
        {"integration/a.py": "async def f(a): pass"},
    ],
    "the field's words": [
        {"ops/a.py": "num_seats = 1"},
        {"ops/a.py": "class RowSeat: pass"},
        {"ops/a.py": "f(standing=1)"},
        {"ops/a.py": "def f(told): pass"},
        {"ops/a.py": "from m import x as tally"},
        {"ops/a.py": "x._ridden.y"},
        {"ops/a.py": "CLOSE_PLACE = own_rows = 1"},
        {"ops/a.py": "def public(): pass"},
        {"ops/a.py": "torch.full.full"},
        {"ops/standing.py": ""},
    ],
}
KEPT = {  # what no rule minds
    "__init__.py": "",
    "py.typed": "",
    "wire.py": "X = 1",
    "config/a.py": "from led_sglang.config import b\nfrom led_sglang.wire import X",
    "config/b.py": "",
    "ops/rows/a.py": "from led_sglang.ops.kernels import a\nimport torch",
    "ops/kernels/a.py": "import triton\nimport torch\ntorch.full(1)",
    "ops/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from led_sglang.ops.rows import a",
    "launch.py": "def f(): import sglang",
    "integration/a.py": "import sglang\ndef f(a: int, b: dict[str, Any], standard: int, understand: int): pass",
    "integration/scheduler/a.py": "from led_sglang.ops.rows import a\nimport torch",
    "integration/http/a.py": "import fastapi\nfrom led_sglang.config.a import x",
    "testing/__init__.py": "from led_sglang.testing import oracle",
    "testing/oracle.py": "",
}


@pytest.mark.parametrize("name", rules.RULES)
def test_rule(name: str) -> None:
    faults = list(rules.RULES[name](house))
    assert not faults, "\n".join([f"{name}: broken {len(faults)} times", *faults])


@pytest.mark.parametrize(("name", "files"), [(name, files) for name in BREACHES for files in BREACHES[name]])
def test_a_breach_is_seen(name: str, files: dict[str, str], tmp_path: Path) -> None:
    build(tmp_path, KEPT | files)
    if name == "py.typed is there":
        (tmp_path / "led_sglang/py.typed").unlink()
    assert list(rules.RULES[name](rules.House(tmp_path)))


def test_what_keeps_the_rules_breaks_none(tmp_path: Path) -> None:
    build(tmp_path, KEPT)
    found = rules.House(tmp_path)
    assert {name: list(rule(found)) for name, rule in rules.RULES.items() if list(rule(found))} == {}


def test_every_rule_has_a_breach() -> None:
    assert set(BREACHES) == set(rules.RULES)


def test_no_rule_is_about_a_room_that_is_gone() -> None:
    """A room that is moved would take its rules out of force."""
    for name, rule in rules.RULES.items():
        rooms = (rule.target,) if isinstance(rule, rules.OnlyBy) else getattr(rule, "rooms", (".",))
        gone = [room for room in rooms if room.startswith(".") and not list(house.below(room))]
        assert not gone or (rooms == rules.CPU and len(gone) < len(rooms)), f"{name}: no {gone}"


def test_every_foreign_name_is_in_use() -> None:
    text = "".join(module.source for module in house.below("."))
    assert [name for name in house_words.FOREIGN if name not in text] == []


def test_what_the_http_side_reads_loads_no_heavy_library() -> None:
    """In a process of its own: what a module imports, its imports import."""
    names = [name for name in house.modules if rules.is_below(name, HTTP_SIDE)]
    lines = [f"import {', '.join(names)}", f"print(*sorted(sys.modules.keys() & {set(rules.HEAVY)}))"]
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert len(names) > 10 and done.stdout.split() == []


def build(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "led_sglang" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
