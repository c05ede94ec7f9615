"""Run by test_triton.py under the interpreter: log-sum-exps from the head's copy in eight bits."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops import Head, KnownLse, LedStep, self_test
from led_sglang.ops.fp8.rows import Fp8Rows
from led_sglang.ops.kernels import final_layer, lm_head
from led_sglang.ops.kernels.lm_head import latent_lse
from led_sglang.ops.self_test import fault_with
from tests.unit.ops.cases.op_cases import Case, make_case

ODD_HEAD = {"softcap": 6.0, "scale": 1.5, "bias": torch.linspace(-1, 1, 300), "num_rows": 290}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_layer, "PART", 64)
    monkeypatch.setattr(final_layer, "STRIP", 8)
    monkeypatch.setattr(lm_head, "SMALL_TILE", lm_head.SMALL_TILE._replace(rows=8, vocab=32))
    monkeypatch.setattr(lm_head, "LARGE_TILE", lm_head.LARGE_TILE._replace(rows=16, vocab=64))


def copied(case: Case) -> Case:
    """With a copy, and as its weight what the copy says: all that is exact then agrees."""
    copy = Fp8Rows.of(case.head.weight)
    return case.with_head(weight=copy.decoded(0, len(copy.codes), case.head.weight.dtype), lse_copy=copy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", [{}, ODD_HEAD], ids=["plain", "odd"])
def check_sums(dtype: torch.dtype, head: dict[str, object]) -> None:
    """Float32 sums of exact products: those of float64 with the decoded weight."""
    case = copied(make_case(11, 300, hidden=70, depth=3, dtype=dtype).with_head(**head))
    tau, mask = torch.linspace(0.3, 2, 11), torch.arange(11) % 3 > 0
    wide = case.latents.double() @ case.head.weight[: case.head.num_rows].double().T
    if head:
        wide = 6 * torch.tanh((wide + case.head.bias[: case.head.num_rows].double()) * 1.5 / 6)  # type: ignore[index]
    truth = (wide / tau[:, None]).logsumexp(-1)
    found = latent_lse(case.latents, case.head, tau[:, None], mask, None)
    assert (found - truth)[:, mask].abs().max() < 1e-4
    known = KnownLse(torch.randn(2, 11), torch.arange(11) % 4 == 1)
    both = latent_lse(case.latents, case.head, tau[:, None], mask, known)
    assert torch.equal(both[:, known.has_lse], known.lse[:, known.has_lse])
    assert torch.equal(both[:, mask & ~known.has_lse], found[:, mask & ~known.has_lse])


@pytest.mark.parametrize("size", [1e-3, 1e5])
def check_states_of_any_size(size: float) -> None:
    case = copied(make_case(3, 300, hidden=70, depth=2, dtype=torch.bfloat16))
    latents = (case.latents / case.latents.abs().max() * size).bfloat16()
    tau = torch.full((3,), max(size, 1.0))
    truth = (latents.double() @ case.head.weight.double().T / tau[:, None]).logsumexp(-1)
    found = latent_lse(latents, case.head, tau[:, None], torch.ones(3, dtype=torch.bool), None)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[::2])
def check_step(dtype: torch.dtype) -> None:
    """Of the weight itself, kernels and plain torch alike; the candidates' logits are not the copy's."""
    plain = make_case(7, 300, hidden=48, depth=3, dtype=dtype, trace=True, explore=True)
    case = plain.with_head(lse_copy=Fp8Rows.of(plain.head.weight))
    found, truth, exact = case.run("triton"), case.run("torch"), plain.run("triton")
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.explore_probs, truth.explore_probs, rtol=tolerance, atol=tolerance)
    for name in {field.name for field in fields(LedStep)} & {"candidate_ids", "exploit_probs", "confidence"}:
        assert torch.equal(getattr(found, name), getattr(exact, name))
    assert not torch.equal(found.depth_entropy, exact.depth_entropy)  # type: ignore[arg-type]
    assert (found.explore_probs - exact.explore_probs).abs().max() < 0.1


def check_many_rows_are_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the faster one; but never where a row's bits must not depend on its company."""
    monkeypatch.setattr(lm_head, "COPY_ROWS", 8)
    case = make_case(5, 300, hidden=40, depth=3, dtype=torch.bfloat16)
    head, mask = replace(case.head, lse_copy=Fp8Rows.of(case.head.weight)), torch.ones(5, dtype=torch.bool)

    def sums(num_rows: int, head: Head) -> Tensor:
        return latent_lse(case.latents[:, :num_rows], head, case.rows.tau[:num_rows], mask[:num_rows], None)

    assert torch.equal(sums(5, head), sums(5, case.head))
    assert not torch.equal(sums(4, head), sums(4, case.head))
    invariant = replace(head, is_batch_invariant=True)
    assert torch.equal(sums(5, invariant)[:, :1], sums(1, invariant))
    assert torch.equal(sums(1, invariant), sums(1, head))


def check_one_pass_is_of_the_weight() -> None:
    """Which is read for the final rows all the same."""
    plain = make_case(5, 300, hidden=40, depth=3, explore=True)
    hidden, mask = torch.randn(5, 40), torch.ones(5, dtype=torch.bool)
    found = [torch.empty(2, 5), torch.empty(2, 5)]
    for head, lse in zip((plain.head, replace(plain.head, lse_copy=Fp8Rows.of(plain.head.weight))), found, strict=True):
        lm_head.head_sums(hidden, lm_head.LatentRows(plain.latents, mask, plain.rows.tau), head, lse)
    assert torch.equal(*found)


def check_the_start_sees_wrong_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the copy alone; by a factor of two."""
    monkeypatch.setattr(self_test, "MANY_ROWS", 2)
    case = make_case(5, 300, hidden=48, depth=2, dtype=torch.bfloat16)
    head = replace(case.head, lse_copy=Fp8Rows.of(case.head.weight))
    assert fault_with("triton", head, case.latents, 4) is None

    def wrong(latents: Tensor, head: Head, *others: Any) -> Tensor:
        return latent_lse(latents, head, *others) + (0.0 if head.lse_copy is None else 0.7)

    monkeypatch.setattr(lm_head, "latent_lse", wrong)
    fault = fault_with("triton", head, case.latents, 4)
    assert fault is not None and "the copy of the head in 8 bits" in fault
    assert fault_with("triton", replace(head, lse_copy=None), case.latents, 4) is None
