"""Products in blocks against torch's own, in every type, at sizes on both sides of every limit."""

import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from led_sglang.cpu_platform import products

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDE = 2 * products.BLOCK_COLUMNS + 3


@pytest.fixture(params=[True, False], ids=["without kernels of 16 bits", "as this CPU is"])
def is_slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(products, "_is_slow", lambda dtype: dtype != torch.float32)


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_rounded_once(found: Tensor, exact: Tensor, scale: Tensor) -> None:
    """Within half a step of the type, and what float32 loses in a sum. scale: (M, N), the sums of magnitudes."""
    assert found.dtype in DTYPES
    allowed = torch.finfo(found.dtype).eps / 2 * exact.abs() + 4e-6 * scale + 1e-7
    excess = (found.double() - exact).abs() - allowed
    assert excess.max() <= 0, f"{int((excess > 0).sum())} of {found.numel()} values, by up to {excess.max():g}"


@pytest.mark.parametrize(("dtype", "rows"), [*product(DTYPES, [1, 2, 3, 17]), (torch.float32, 300)], ids=str)
@pytest.mark.parametrize("columns", [1, 40, products.WIDENED_COLUMNS, WIDE])
@pytest.mark.usefixtures("is_slow")
def test_products(dtype: torch.dtype, rows: int, columns: int) -> None:
    a, weight, bias = draw(dtype, rows, 70), draw(dtype, columns, 70), draw(dtype, columns)
    exact, scale = a.double() @ weight.double().t(), a.double().abs() @ weight.double().abs().t()
    for b in (weight.t(), weight.t().contiguous()):  # as a weight lies, and the other way
        assert_rounded_once(products.mm(a, b), exact, scale)
    biased = products.addmm(bias, a, weight.t())
    assert biased.dtype == dtype
    assert_rounded_once(biased, exact + bias.double(), scale + bias.double().abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("is_slow")
def test_other_forms_are_torchs(dtype: torch.dtype) -> None:
    a, b, bias = draw(dtype, 5, 9), draw(dtype, 9, WIDE), draw(dtype, 5, 1)
    for options in ({}, {"alpha": 0.5}, {"beta": 2.0}):
        expected = torch.addmm(bias, a, b, **options)
        torch.testing.assert_close(products.addmm(bias, a, b, **options), expected)
    assert products.mm(a[:0], b).shape == (0, WIDE)
    assert products.mm(a, b[:, :0]).shape == (5, 0)
    assert torch.equal(products.mm(a[:, :0], b[:0]), torch.zeros(5, WIDE, dtype=dtype))


@pytest.mark.parametrize("call", [products.mm, torch.mm])
def test_types_and_shapes_that_do_not_fit_raise(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    for a, b in ((draw(torch.float32, 4, 9), draw(torch.bfloat16, 9, WIDE)), (draw(torch.bfloat16, 4, 9),) * 2):
        with pytest.raises(RuntimeError):
            call(a, b)


INSTALLED = """
import torch
from led_sglang.cpu_platform import deterministic, products

a, weight, bias = torch.randn(8, 64), torch.randn(4000, 64), torch.randn(4000)
expected = (a.double() @ weight.double().t() + bias).float()
calls = []
width = products._block_width
products._block_width = lambda a, b: calls.append(len(a)) or width(a, b)
products.install()
torch.testing.assert_close(torch.nn.functional.linear(a, weight, bias), expected)
torch.nn.functional.linear(a[None], weight)
assert calls == [8, 8], calls
deterministic.enable_batch_invariant_mode()
products.install()  # does not undo it
torch.mm(a, weight.t())
assert calls[2:] == [32], calls
print("installed")
"""


def test_every_product_of_a_process_that_installs_them() -> None:
    done = subprocess.run([sys.executable, "-c", INSTALLED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "installed", done.stderr[-2000:]
