"""`--enable-deterministic-inference`: a row's bits do not depend on the batch, kernels' and plain torch's alike."""

from pathlib import Path

import pytest
from elsewhere import names, outcomes

SCRIPT = Path(__file__).with_name("invariance_checks.py")


@pytest.fixture(scope="module", params=["kernels", "torch"])
def faults(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    pytest.importorskip("triton")
    return outcomes(SCRIPT, TRITON_INTERPRET=str(int(request.param == "kernels")))


@pytest.mark.parametrize("check", names(SCRIPT))
def test_a_row_does_not_know_its_batch(check: str, faults: dict[str, list[str]]) -> None:
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])
