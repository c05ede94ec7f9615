"""The Triton kernels without a GPU: Triton's interpreter has to be asked for before Triton is imported."""

from pathlib import Path

import pytest

from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SCRIPTS = [HERE / f"{name}_checks.py" for name in ("step", "filtered_draw", "projected", "fp8")]
CHECKS = [pytest.param(script, name, id=f"{script.stem}-{name}") for script in SCRIPTS for name in names(script)]


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_under_the_interpreter(script: Path, check: str) -> None:
    require(script, check, TRITON_INTERPRET="1")
