"""What rows ask for: columns and the host-known promises about them."""

import pytest
import torch

from led_sglang.ops import LedRows

MIXED = {
    "depth": torch.tensor([3, 8, 8]),
    "top_k": torch.tensor([8, 4, 2]),
    "greedy": torch.tensor([False, True, False]),
    "latent_norm": torch.tensor([True, False, True]),
    "normalize_layers": torch.tensor([False, False, True]),
    "latent_offset": torch.tensor([0, 0, 1]),
    "min_p": torch.tensor([0.0, 0.1, 0.0]),
    "trace": torch.tensor([False, True, False]),
}
PROMISES = ("any_trace", "any_norm", "any_min_p", "any_greedy", "any_normalize", "any_offset")


def test_uniform_rows_promise_all_there_is_to_promise():
    rows = LedRows.uniform(3)
    assert rows.depth.tolist() == rows.top_k.tolist() == [8, 8, 8] and (rows.max_depth, rows.max_top_k) == (8, 8)
    assert not any(getattr(rows, name) for name in (*PROMISES, "mixed_depth", "mixed_top_k", "all_norm"))
    dtypes = {name: getattr(rows, name).dtype for name in ("depth", "temperature", "greedy", "min_p")}
    assert list(dtypes.values()) == [torch.int64, torch.float32, torch.bool, torch.float32]


def test_promises_are_those_of_the_columns():
    rows = LedRows.uniform(3, **MIXED)
    assert all(getattr(rows, name) for name in (*PROMISES, "mixed_depth", "mixed_top_k")) and not rows.all_norm
    assert (rows.max_depth, rows.max_top_k) == (8, 8)
    assert LedRows.uniform(3, latent_norm=True).all_norm and LedRows.uniform(3, any_trace=True).any_trace


@pytest.mark.parametrize("num_rows", [0, 1])
def test_few_rows(num_rows):
    rows = LedRows.uniform(num_rows, depth=torch.full((num_rows,), 3), top_k=2)
    assert len(rows.depth) == num_rows and rows.max_top_k == 2 and not rows.mixed_depth


def test_a_name_that_is_no_field():
    with pytest.raises(TypeError, match="full"):
        LedRows.uniform(2, full=True)


def test_numpy_shares_the_columns():
    """What the compiled loops read; made once."""
    rows = LedRows.uniform(3, **MIXED)
    assert rows.arrays is rows.arrays and rows.arrays["depth"].ctypes.data == rows.depth.data_ptr()
    assert rows.arrays["tau"].tolist() == [[pytest.approx(0.6)], [1.0], [pytest.approx(0.6)]]
    assert rows.take(torch.tensor([1])).arrays["depth"].tolist() == [8]
