"""What `--enable-deterministic-inference` stands on: products that do not know their neighbours, and SGLang's hash."""

import os
import subprocess
import sys

import pytest
import torch

from led_sglang.cpu_platform import deterministic

COMPARE = """
import torch
from sglang.kernels.ops.sampling.murmur_hash import murmur_hash32_kernel
from led_sglang.cpu_platform.deterministic import murmur_hash32

seed = torch.tensor([0, 1, 42, 2**31, 2**63 - 1, -5]).to(torch.uint64)
positions, columns = torch.tensor([0, 7, 100, 2**20, 3, 1]), torch.arange(1500)
expected = torch.empty(6, 1500, dtype=torch.uint32)
murmur_hash32_kernel[(6, 2)](seed, positions, columns, expected, 6, 1500, BLOCK_SIZE=1024)
assert murmur_hash32(seed, positions, columns).tolist() == expected.tolist()
print("equal")
"""


def test_the_hash_is_sglangs_kernel() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 100])
def test_a_row_of_a_product_does_not_depend_on_the_others(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(num_rows, 300, generator=generator), torch.randn(300, 170, generator=generator)
    product = deterministic._mm(a, b)
    exact = a.double() @ b.double()  # torch's own float32 differs by CPU
    torch.testing.assert_close(product.double(), exact, rtol=0, atol=1e-4)
    for row in {0, num_rows // 2, num_rows - 1}:
        assert torch.equal(deterministic._mm(a[row : row + 1], b)[0], product[row])
    bias = torch.randn(170, generator=generator)
    added = deterministic._addmm(bias, a, b, alpha=2)
    torch.testing.assert_close(added.double(), bias.double() + 2 * exact, rtol=0, atol=2e-4)


def test_no_row_is_no_product() -> None:
    assert deterministic._mm(torch.zeros(0, 3), torch.zeros(3, 2)).shape == (0, 2)
