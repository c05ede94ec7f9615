"""docs/compat.md has the tables of scripts/models.py, and the script lists what a test computes and nothing beside."""

from pathlib import Path

from led_sglang.integration.model_support import NO_LAYER_OUTPUT
from scripts import models
from tests.models.zoo import ENTRIES
from tests.server.checkpoints import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_current() -> None:
    """Else: .venv/bin/python scripts/models.py"""
    assert models.page() == models.PAGE.read_text(encoding="utf-8")


def test_every_row_is_of_a_test() -> None:
    rows = [line for line in models.table().split("\n\n")[0].splitlines()[2:] if line.startswith("| ")]
    assert len(rows) == len(models.SERVED) + len(ENTRIES)
    for name, (_, _, test) in models.SERVED.items():
        assert (name in ARCHITECTURES and f'"{name}"' in (ROOT / test).read_text()) or test.endswith("test_exact.py")
    assert "ENTRIES.items()" in (ROOT / models.MATRIX).read_text(), "the matrix runs every row"


def test_no_class_is_shown_and_refused() -> None:
    assert not {entry.model_class for entry in ENTRIES.values()} & set(NO_LAYER_OUTPUT)


def test_a_row_says_what_did_not_run_in_the_engines_own_kernels() -> None:
    helped = [entry for entry in ENTRIES.values() if entry.has_stand_ins]
    assert helped and all("plain torch" in models.shown_by(entry) for entry in helped)
    assert "plain torch" not in models.shown_by(ENTRIES["glm4_moe"])
