"""No kernel is compiled while a server serves: what requests can reach is run at start."""

from pathlib import Path

import pytest
from elsewhere import names, require

SCRIPT = Path(__file__).with_name("variant_checks.py")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_variants(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="0")
