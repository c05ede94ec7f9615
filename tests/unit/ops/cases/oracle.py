"""The comparison that all backends' tests rest on: a step against the float64 reference, by error budget."""

from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops import LedStep
from tests.unit.ops.cases.op_cases import Case

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def error(step: LedStep, truth: LedStep, rows: Tensor) -> float:
    """Largest absolute error of any probability in `rows`."""
    pairs = [(step.exploit_probs, truth.exploit_probs), (step.explore_probs, truth.explore_probs)]
    pairs += [(step.confidence, truth.confidence), (step.entropy, truth.entropy)]
    return max(((a - b)[rows].abs().max().item() for a, b in pairs), default=0.0) if rows.any() else 0.0


def reported(case: Case) -> Case:
    """With everything computed that a row with `trace` may ask for."""
    return replace(case, rows=replace(case.rows, any_trace=True))


def check_untold(case: Case, backend: str, told_step: LedStep) -> None:
    """What nobody asked for is left out, and nothing else changes."""
    step = case.run(backend)
    for name in ("token_ids", "ok", "explored", "depth", "candidate_ids"):
        assert torch.equal(getattr(step, name), getattr(told_step, name)), name
    if backend in ("torch", "numba", "triton"):
        assert (step.entropy is None) == (step.logprob is None) == (not case.rows.any_trace)


def check(case: Case, backend: str) -> None:
    truth, step, eager = case.run("reference"), reported(case).run(backend), case.run("eager")
    check_untold(case, backend, step)
    tolerance = TOLERANCE[case.head.weight.dtype]
    is_clear = (
        case.inputs.coin_uniform - (1 - truth.confidence.double())
    ).abs() > 1e-6  # the coin is not on its very edge
    assert step.ok[is_clear].tolist() == truth.ok[is_clear].tolist()
    rows = truth.ok & case.inputs.active & (is_clear | ~case.rows.exploit)
    assert step.explored[rows].tolist() == truth.explored[rows].tolist()
    assert step.candidate_ids[truth.exploit_probs > 0].tolist() == truth.candidate_ids[truth.exploit_probs > 0].tolist()
    same_depth = rows & (step.depth == truth.depth) & (eager.depth == truth.depth)
    # Two aggregates of all but equal entropy may be told apart differently by rounding, in few rows.
    assert (rows & ~same_depth).sum() <= (0.02 if tolerance < 1e-3 else 0.15) * len(rows) + 1
    torch.testing.assert_close(step.entropy[rows], truth.entropy[rows], rtol=tolerance, atol=2 * tolerance)
    assert error(step, truth, same_depth) <= error(eager, truth, same_depth) + tolerance
    valid = same_depth & (truth.explored | case.rows.trace)
    budget = 5e-3 if tolerance < 1e-3 else 0.2  # of a logarithm that may be that of a tiny probability
    torch.testing.assert_close(step.logprob[valid], truth.logprob[valid], rtol=budget, atol=budget)
    agree = (step.token_ids == truth.token_ids)[same_depth]
    assert agree.all() if tolerance < 1e-3 else agree.float().mean() >= 0.8
