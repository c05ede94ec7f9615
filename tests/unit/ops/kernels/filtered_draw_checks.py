"""Run under TRITON_INTERPRET=1 by test_triton.py: the seeded draw in Triton against that in numba."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from led_sglang.ops.kernels import filtered_draw
from led_sglang.ops.rows.filtered_draw import Filters
from tests.unit.ops.cases.draw_cases import Draw, every_filter, skipping
from tests.unit.ops.cases.watch import Launches

VOCAB, SOME = 300, [0, 7, 12, 26, 33, 41, 50, 54, 66, 71, 75, 79]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered_draw, "PART", 64)


def compare(draw: Draw) -> None:
    """Tokens and what they were drawn from, bit for bit."""
    tokens, coin_threshold = draw.run("triton")
    truth, true_cut = draw.run("numba")
    assert torch.equal(tokens[~draw.skip], truth[~draw.skip]) and ((tokens >= 0) & (tokens < draw.probs.shape[1])).all()
    for ours, theirs, is_skipped in zip(
        draw.policies(coin_threshold), draw.policies(true_cut), draw.skip.tolist(), strict=True
    ):
        assert is_skipped or ours == theirs


def check_skipped_rows(small_parts: None) -> None:
    """They read nothing of their vocabulary; the others read it once, and what may be kept again."""
    draw, seen = skipping(every_filter(VOCAB, seed=1).take(SOME)), []
    plenty, ones = torch.full((len(SOME),), VOCAB), torch.ones(len(SOME))
    draw = replace(draw, filters=Filters(plenty, ones, 0 * ones))
    read = filtered_draw.probabilities

    def reading(probs: Any, row: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(int(row.handle.data.item()))
        return read(probs, row, part, *args, **kwargs)

    with patch.object(filtered_draw, "probabilities", reading):
        draw.run("triton")
    num_parts = -(-VOCAB // filtered_draw.PART)
    assert sorted(seen) == sorted(draw.rows[~draw.skip].tolist() * (num_parts + 1))


def check_programs(small_parts: None) -> None:
    """Neither how many programs share a row nor the company changes a token."""
    draw = every_filter(VOCAB, seed=2, has_ties=True).take(SOME)
    tokens, _ = draw.run("triton")
    with patch.object(filtered_draw, "NUM_PROGRAMS", 2):
        assert torch.equal(draw.run("triton")[0], tokens)
    assert torch.equal(torch.cat([draw.take([s]).run("triton")[0] for s in range(len(SOME))]), tokens)


def check_broken_rows(small_parts: None) -> None:
    draw = every_filter(VOCAB, seed=3).take(SOME)
    probs = draw.probs.clone()
    probs[0], probs[1, 3], probs[2, 4], probs[3], probs[4, 5] = torch.nan, torch.inf, -1.0, 0.0, 1.0000001
    compare(replace(draw, probs=probs))
    compare(replace(draw, probs=draw.probs.bfloat16()))
    compare(replace(draw, probs=torch.cat([draw.probs, draw.probs], 1)[:, :VOCAB]))


def check_ties_of_two_parts(small_parts: None) -> None:
    """Of two equals the first is kept; the other, before a larger token of its own part, takes nothing of that."""
    probs = torch.zeros(1, 128)
    probs[0, [0, 64, 65, 70]] = torch.tensor([0.1, 0.1, 0.5, 0.3])
    row, filters = torch.tensor([0]), Filters(torch.tensor([3]), torch.ones(1), torch.zeros(1))
    for uniform, token in ((0.05, 0), (0.12, 65), (0.6, 65), (0.7, 70)):
        draw = Draw(probs, row, row > 0, torch.tensor([uniform], dtype=torch.float64), filters)
        for backend in ("triton", "numba", "torch"):
            assert draw.run(backend)[0].tolist() == [token], (backend, uniform)


def check_cost() -> None:
    """Two launches and their columns, at 256 rows of the largest vocabulary: nothing is as wide as that."""
    num_rows, vocab = 256, 151936
    column, probs = torch.zeros(num_rows, dtype=torch.int64), torch.empty(num_rows, vocab)  # never touched
    draw = Draw(probs, column, column > 0, column.double(), Filters(column.int(), column.float(), column.float()))
    mode = Launches()
    with patch.multiple(filtered_draw, parts_kernel=mode, draw_kernel=mode), mode:
        draw.run("triton")
    assert mode.count == 2 and 0 < mode.num_bytes < 1 << 20, (mode.count, mode.num_bytes)


@pytest.mark.parametrize("vocab", [VOCAB, 64, 5])
@pytest.mark.parametrize("has_ties", [False, True])
def check_filters(small_parts: None, vocab: int, has_ties: bool) -> None:
    compare(skipping(every_filter(vocab, seed=vocab, has_ties=has_ties).take(SOME)))


def check_no_rows(small_parts: None) -> None:
    compare(every_filter(97, seed=9).take([]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def check_softmax_of_some_rows(small_parts: None, dtype: torch.dtype) -> None:
    """Strided, forbidden and equal logits, rows that come twice; a row that is skipped is neither read nor written."""
    logits = torch.randn(5, 1001, generator=torch.Generator().manual_seed(1)).mul_(9).to(dtype)[:, :1000]
    logits[1, 3:900], logits[2] = -torch.inf, 0.5
    rows, tau = torch.tensor([4, 1, 2, 1, 0]), torch.tensor([1.0, 0.3, 2.0, 0.7, 1.0])
    skip = torch.tensor([False, False, False, False, True])
    logits[0] = torch.nan
    found = filtered_draw.softmax_rows(logits, rows, skip, tau)
    expected = torch.softmax(logits[rows].float() / tau[:, None], -1)
    torch.testing.assert_close(found[:4], expected[:4], rtol=1e-5, atol=1e-7)
