"""The cost of a step on a GPU, counted without one: the checks compile kernels, and so need a process of their own."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("gpu_cost_checks.py")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_what_is_counted(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="0")
