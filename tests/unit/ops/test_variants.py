"""No kernel is compiled while a server serves: what requests can reach is run at start."""

from pathlib import Path

import pytest
from elsewhere import names, outcomes

SCRIPT = Path(__file__).with_name("variant_checks.py")


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    pytest.importorskip("triton")
    return outcomes(SCRIPT, TRITON_INTERPRET="0")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_variants(check: str, faults: dict[str, list[str]]) -> None:
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])
