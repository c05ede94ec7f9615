"""The Triton kernels compiled for a Hopper GPU, which takes none: what the interpreter cannot tell."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHARED_BYTES = 227 << 10  # of a Hopper multiprocessor, for one block
VARIANTS = {"head_kernel": 2}  # compiled twice on purpose: for tiles of few rows, and of many
# What is long is read in wide loads.
WIDE = {"head_kernel", "scan_kernel", "candidates_kernel"}
WIDE |= {"parts_kernel", "draw_kernel", "product_kernel"}
ROWS = (1, 3, 16, 250)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    pytest.importorskip("triton")
    env = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.build", "--dtypes", "bfloat16", "--rows", *map(str, ROWS)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_fit_and_use_the_tensor_cores(lines):
    for line in lines:
        assert line["spilled_bytes"] == 0 and line["shared_bytes"] <= SHARED_BYTES, line
        assert (line["wide_loads"] > 0) == (line["kernel"] in WIDE) or line["kernel"] == "coin_kernel", line
        is_product = line["kernel"] == "head_kernel"
        assert all(m.startswith("HGMMA") for m in line["matrix"]) and bool(line["matrix"]) == is_product, line


def test_another_number_of_rows_compiles_nothing_anew(lines):
    """A compilation takes a second, and a server would stand still for it in the middle of somebody's answer."""
    for kernel, count in Counter(line["kernel"] for line in lines).items():
        assert count == VARIANTS.get(kernel, 1), (kernel, count)
    assert len({line["kernel"] for line in lines}) == 14
