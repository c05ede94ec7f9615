"""A head that the engine multiplies (quantised): which rows it is given, how many at once, and their cost."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from led_sglang.ops import Head
from led_sglang.ops.backends import lm_head as torch_head
from led_sglang.ops.backends.lm_head import PROJECT_ROWS, latent_sums
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.ops.cases.oracle import check
from tests.unit.ops.cases.projected_cases import Product, projected, with_explorers
from tests.unit.ops.cases.watch import MIB, V, Watch

CPU_BACKENDS = pytest.mark.parametrize("backend", ["torch", "numba"])


@CPU_BACKENDS
@pytest.mark.parametrize("num_explorers", [0, 5, 64])
def test_rows_that_need_nothing_are_not_multiplied(backend, num_explorers):
    case, product = projected(with_explorers(64, num_explorers))
    step = case.run(backend)
    assert step.explored.sum() == num_explorers
    assert product.num_rows == ([3 * num_explorers] if num_explorers else [])


@CPU_BACKENDS
def test_traced_rows_are_multiplied_too(backend):
    trace = torch.arange(64) % 16 == 0
    case, product = projected(with_explorers(64, 0, trace=trace))
    case.run(backend)
    assert product.num_rows == [3 * 4]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"softcap": 6.0, "scale": 1.5}, {"num_rows": 1290}])
def test_many_at_once_and_the_numbers_of_a_plain_head(fixed, changes, monkeypatch):
    """Of a product a few rows at a time are widened; nothing depends on how many."""
    backend = TorchBackend(allows_dynamic_shapes=not fixed)
    monkeypatch.setattr(torch_head, "TILE_ELEMENTS", (7 if fixed else 5) * 1300)
    plain = with_explorers(130, 130 if not fixed else 9, vocab=1300, hidden=96).with_head(**changes)
    case, product = projected(plain)
    step, truth = case.run(backend), plain.run(backend)
    assert product.num_rows == [PROJECT_ROWS, 3 * 130 - PROJECT_ROWS]
    torch.testing.assert_close(step.explore_probs, truth.explore_probs, rtol=1e-5, atol=1e-6)
    assert torch.equal(step.token_ids, truth.token_ids)
    check(case.with_head(weight=plain.head.weight), backend)


def test_no_more_than_a_product_is_held():
    """On a GPU: no float32 copy of the product, no second product, as many rows at once as a layer has."""
    num_layers, num_rows, hidden = 7, 256, 2560
    with FakeTensorMode():
        latents = torch.empty(num_layers, num_rows, hidden, dtype=torch.bfloat16, device="cuda")
        weight = torch.empty(V, hidden, dtype=torch.bfloat16, device="cuda")
        ids = torch.empty(num_rows, 8, dtype=torch.int64, device="cuda")
        product = Product(weight)
        head, tau = Head(weight[:, :0], V, project=product), torch.empty(num_rows, 1, device="cuda")
        with Watch() as watch:
            latent_sums(latents, ids, head, tau, None)
    assert product.num_rows == [num_rows] * num_layers
    product_bytes = PROJECT_ROWS * V * 2
    assert product_bytes < watch.peak_bytes <= product_bytes + 64 * MIB, watch.peak_bytes / MIB
    assert not watch.copies
