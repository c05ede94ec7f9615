"""A CUDA graph's capture launches no kernel that was not launched before it."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("capture_order_checks.py")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_capture_order(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="0")
