"""No kernel is compiled while a server serves: what requests can reach is run at start."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

SCRIPT = Path(__file__).with_name("warm_up_checks.py")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_what_requests_reach(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="0")
