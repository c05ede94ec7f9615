"""No kernel is compiled while a server serves: what requests can reach is run at start."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

SCRIPT, PREPARE = (Path(__file__).with_name(name) for name in ("warm_up_checks.py", "prepare_checks.py"))


@pytest.mark.parametrize("check", names(SCRIPT))
def test_what_requests_reach(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="0")


@pytest.mark.parametrize("check", names(PREPARE))
def test_on_a_cpu(check: str) -> None:
    require(PREPARE, check)
