"""docs/compat.md has the tables of scripts/models.py, and the script lists what a test computes and nothing beside."""

import importlib.util
from pathlib import Path
from types import ModuleType

from led_sglang.integration.model_support import NO_LAYER_OUTPUT
from tests.models.zoo import ENTRIES
from tests.server.checkpoints import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[3]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models", ROOT / "scripts/models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()


def test_the_page_is_current() -> None:
    """Else: .venv/bin/python scripts/models.py"""
    assert script.page() == script.PAGE.read_text(encoding="utf-8")


def test_every_row_is_of_a_test() -> None:
    rows = [line for line in script.table().split("\n\n")[0].splitlines()[2:] if line.startswith("| ")]
    assert len(rows) == len(script.SERVED) + len(ENTRIES)
    for name, (_, _, test) in script.SERVED.items():
        assert (name in ARCHITECTURES and f'"{name}"' in (ROOT / test).read_text()) or test.endswith("test_exact.py")
    assert "ENTRIES.items()" in (ROOT / script.MATRIX).read_text(), "the matrix runs every row"


def test_no_class_is_shown_and_refused() -> None:
    assert not {entry.model_class for entry in ENTRIES.values()} & set(NO_LAYER_OUTPUT)


def test_a_row_says_what_did_not_run_in_the_engines_own_kernels() -> None:
    helped = [entry for entry in ENTRIES.values() if entry.has_stand_ins]
    assert helped and all("plain torch" in script.shown_by(entry) for entry in helped)
    assert "plain torch" not in script.shown_by(ENTRIES["glm4_moe"])
