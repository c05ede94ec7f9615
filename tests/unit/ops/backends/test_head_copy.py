"""Log-sum-exps from the head's copy in eight bits, in torch and numba: all else is the weight's."""

from dataclasses import replace

import pytest
import torch

from led_sglang.ops.backends import lm_head, one_pass
from led_sglang.ops.fp8 import rows as fp8
from led_sglang.ops.fp8.rows import Fp8Rows
from tests.unit.ops.cases.edit_cases import with_edits
from tests.unit.ops.cases.op_cases import FIXED_SHAPES, Case, make_case

BACKENDS = ["torch", "numba", FIXED_SHAPES]
others = pytest.mark.parametrize("backend", BACKENDS, ids=["torch", "numba", "fixed shapes"])


def case_of(**changes: object) -> Case:
    return make_case(9, 300, hidden=48, depth=4, exploit=False, trace=True, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_near_and_exact_once_decoded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within half a unit of four significant bits; what is decoded is a fixed point."""
    monkeypatch.setattr(fp8, "CHUNK", 7)
    weight = (torch.randn(30, 16) * torch.logspace(-3, 2, 30)[:, None]).to(dtype)
    weight[3], weight[4, 1:] = 0, 0
    copy = Fp8Rows.of(weight)
    decoded = copy.decoded(0, 30, dtype)
    smallest = 2.0**-10 * copy.scale[:, None] + 2.0**-25  # half of the format's smallest number, and of float16's
    assert ((decoded.float() - weight.float()).abs() <= (weight.float().abs() / 16).maximum(smallest)).all()
    assert torch.equal(copy.codes[5:].float().abs().amax(1) >= 224, torch.ones(25, dtype=torch.bool))
    assert torch.equal(Fp8Rows.of(decoded).decoded(12, 30, dtype), decoded[12:])  # rows that float16 holds as they are
    assert copy.num_bytes == 30 * (16 + 4)


@others
@pytest.mark.parametrize("width", [64, 4096], ids=["tiles", "one tile"])
def test_the_copy_gives_the_sums(backend: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a head whose weight is what the copy says, where the candidates' logits are those of the weight anyway."""
    monkeypatch.setattr(lm_head, "CHUNK", width)
    case = case_of()
    copy = Fp8Rows.of(case.head.weight)
    decoded = case.with_head(weight=copy.decoded(0, 300, torch.float32))
    with_copy = decoded.with_head(lse_copy=copy).run(backend)
    torch.testing.assert_close(with_copy.explore_probs, decoded.run(backend).explore_probs)
    found, exact = case.with_head(lse_copy=copy).run(backend), case.run(backend)
    ratio = found.explore_probs / exact.explore_probs
    assert (ratio[exact.explore_probs > 1e-3] - 1).abs().max() > 1e-4  # the copy was read
    assert torch.equal(found.candidate_ids, exact.candidate_ids) and torch.equal(found.confidence, exact.confidence)


@others
def test_edits_and_shards(backend: str) -> None:
    plain = with_edits(case_of(), "all")
    copy = Fp8Rows.of(plain.head.weight)
    case = plain.with_head(weight=copy.decoded(0, 300, torch.float32), lse_copy=copy)
    torch.testing.assert_close(
        case.run(backend).explore_probs, case.with_head(lse_copy=None).run(backend).explore_probs
    )
    shard = case.with_head(num_rows=290, all_gather=lambda packed: packed[None])
    whole = shard.with_head(lse_copy=None)
    torch.testing.assert_close(shard.run(backend).explore_probs, whole.run(backend).explore_probs)


def test_one_pass_reads_the_weight() -> None:
    case = case_of()
    head, mask = replace(case.head, lse_copy=Fp8Rows.of(case.head.weight)), torch.ones(9, dtype=torch.bool)
    found = torch.zeros(2, 3, 9)
    for one, lse in zip((head, case.head), found, strict=True):
        one_pass.head_pass(torch.randn(9, 48), case.latents, one, case.rows.tau, mask, lse, False)
    assert torch.equal(*found)


def test_forms_cross_earlier() -> None:
    """A second pass that is cheaper."""
    most = one_pass.MAX_ROWS_OF
    assert most["fp8"] < most["full"] == one_pass.MAX_ROWS
    for head_lse, count in most.items():
        assert one_pass.form_of(count, "auto", False, head_lse) == "one_pass"
        assert one_pass.form_of(count + 1, "auto", False, head_lse) == "coin_first"
