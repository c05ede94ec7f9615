"""What `--enable-deterministic-inference` stands on: products that do not know their neighbours."""

import pytest
import torch

from led_sglang.cpu_platform import deterministic


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 100])
def test_a_row_of_a_product_does_not_depend_on_the_others(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(num_rows, 300, generator=generator), torch.randn(300, 170, generator=generator)
    product = deterministic._mm(a, b)
    torch.testing.assert_close(product, a @ b)
    for row in {0, num_rows // 2, num_rows - 1}:
        assert torch.equal(deterministic._mm(a[row : row + 1], b)[0], product[row])
    bias = torch.randn(170, generator=generator)
    added = deterministic._addmm(bias, a, b, alpha=2)
    assert torch.equal(added, bias + 2 * product)  # torch's own addmm sums in another order on some CPUs


def test_no_row_is_no_product() -> None:
    assert deterministic._mm(torch.zeros(0, 3), torch.zeros(3, 2)).shape == (0, 2)
