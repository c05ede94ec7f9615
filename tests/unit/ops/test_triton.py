"""The Triton kernels without a GPU: Triton's interpreter has to be asked for before Triton is imported."""

from pathlib import Path

import pytest
from elsewhere import names, outcomes

SCRIPT = Path(__file__).with_name("triton_checks.py")


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    pytest.importorskip("triton")
    return outcomes(SCRIPT, TRITON_INTERPRET="1")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_under_the_interpreter(check: str, faults: dict[str, list[str]]) -> None:
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])
