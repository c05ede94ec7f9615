"""The numerics of the path that a GPU takes, on the CPU: the same error budget as every backend's."""

from dataclasses import replace

import pytest
import torch

from tests.unit.ops.cases.op_cases import FIXED_SHAPES, make_case
from tests.unit.ops.cases.oracle import check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 97), (3, 5), (17, 97), (2, 32001)])
def test_dtypes_and_ragged_sizes(dtype, num_rows, vocab):
    case = make_case(num_rows, vocab, hidden=64 if vocab < 1000 else 256, dtype=dtype, explore=True)
    for logits in (case.final_logits, case.final_logits.T.contiguous().T):
        check(replace(case, final_logits=logits), FIXED_SHAPES)


@pytest.mark.parametrize("temperature", [0.01, 0.6, 5.0])
def test_the_normalizer_keeps_its_digits_at_any_temperature(temperature):
    """Taken relative to the largest logit: 60 / 0.01 in float32 would have an error of 5e-4 already."""
    case = make_case(17, temperature=temperature, explore=False)
    close = case.final_logits.argmax(-1, keepdim=True) ^ 1  # a rival within the temperature's reach
    near = case.final_logits.amax(-1, keepdim=True) - temperature * torch.rand(17, 1)
    case = replace(case, final_logits=case.final_logits.scatter(1, close.clamp_max(96), near) + 60)
    step, truth = case.run(FIXED_SHAPES), case.run("reference")
    torch.testing.assert_close(step.exploit_probs, truth.exploit_probs, rtol=0, atol=4e-6)
    torch.testing.assert_close(step.confidence, truth.confidence, rtol=0, atol=4e-6)


@pytest.mark.parametrize("explore", [True, False])
def test_broken_rows(explore):
    case = make_case(6, explore=explore)
    logits = case.final_logits.clone()
    logits[0, 5], logits[2, 7], logits[4] = torch.nan, torch.inf, -torch.inf
    logits[1, logits[1] < logits[1].topk(2).values[1]] = -torch.inf
    broken = replace(case, final_logits=logits)
    step = broken.run(FIXED_SHAPES)
    assert step.ok.tolist() == [False, True, False, True, False, True]
    assert ((step.token_ids >= 0) & (step.token_ids < 97)).all()
    check(broken, FIXED_SHAPES)


def test_some_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("led_sglang.ops.backends.torch_step.FIXED_CHUNK_ELEMENTS", 97 * 4)
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.TILE_ELEMENTS", 1)
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.CANDIDATE_ELEMENTS", 8 * 64 * 3)
    check(make_case(17, 1300, hidden=64, trace=True), FIXED_SHAPES)
