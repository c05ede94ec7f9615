"""A CUDA graph's capture launches no kernel that was not launched before it."""

from pathlib import Path

import pytest

from tests.unit.ops.elsewhere import names, outcomes

SCRIPT = Path(__file__).with_name("capture_order_checks.py")


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    pytest.importorskip("triton")
    return outcomes(SCRIPT, TRITON_INTERPRET="0")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_capture_order(check: str, faults: dict[str, list[str]]) -> None:
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])
