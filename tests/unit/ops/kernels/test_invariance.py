"""`--enable-deterministic-inference`: a row's bits do not depend on the batch, kernels' and plain torch's alike."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("invariance_checks.py")


@pytest.mark.parametrize("interpreted", ["1", "0"], ids=["kernels", "torch"])
@pytest.mark.parametrize("check", names(SCRIPT))
def test_a_row_does_not_know_its_batch(check: str, interpreted: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET=interpreted)
