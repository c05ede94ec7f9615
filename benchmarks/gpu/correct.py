"""Every backend and form on this device against the float64 reference, by error budget."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.cases import Case, make
from led_sglang.ops import LedStep, led_step, tally
from led_sglang.ops.standing import Standing

BUDGET = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
HEADS: dict[str, dict[str, Any]] = {"plain": {}, "capped": {"softcap": 12.0, "scale": 1.5}, "padded": {"num_rows": 0}}


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each dtype, head, backend and form. Raises where one is outside its budget."""
    sizes = (5, 101, 32) if args.dry_run else (17, 32001, 512)
    for dtype, budget in BUDGET.items():
        for name, changes in HEADS.items():
            case = make(*sizes, 4, 0.5, dtype, args.device).with_head(**changes_of(changes, sizes[1]))
            truth = reference(case)
            for backend in ("eager", "fused", "triton"):
                for form in ("coin_first", "one_pass") if backend != "eager" else ("coin_first",):
                    error = largest_error(getattr(case, form)(backend), truth)
                    line = {"dtype": str(dtype)[6:], "head": name, "backend": backend, "form": form, "error": error}
                    yield line
                    if not error <= budget:
                        raise AssertionError(f"outside the budget of {budget}: {line}")
    yield counted(case)


def counted(case: Case) -> dict[str, Any]:
    """Flags and counters of a step in one kernel. Raises where they are not those of torch (on a CPU, of the loops)."""
    from led_sglang.ops.triton_tally import tell

    step, rows, device = case.coin_first("triton"), case.rows, case.final_logits.device
    slots = torch.arange(len(rows.active), device=device)
    now = Standing(case.noise.coin, case.noise.token, slots, slots, slots % 2 == 0, rows.active, slots)
    one, other = (tally.Counters.zeros(rows.max_depth, 3, device) for _ in range(2))
    flags = tell(now, step, slots % 3, one)
    expected = tally.tell(now, step, False, slots % 3, other, "fused")
    if not torch.equal(flags, expected) or not torch.equal(one.values, other.values):
        raise AssertionError(
            f"flags {flags.tolist()}, not {expected.tolist()}; counters {one.values}, not {other.values}"
        )
    return {"flags": len(flags), "counted": int(one.values.sum())}


def changes_of(changes: dict[str, Any], vocab: int) -> dict[str, Any]:
    return {"num_rows": vocab - 5} if "num_rows" in changes else changes


def reference(case: Case) -> LedStep:
    return led_step(case.final_logits, case.latents, case.head, case.rows, case.noise, backend="reference")


def largest_error(step: LedStep, truth: LedStep) -> float:
    """Over rows whose depth agrees: two depths of all but equal entropy may be told apart either way."""
    agree = step.depth == truth.depth
    if not torch.equal(step.explored, truth.explored) or not agree.float().mean() >= 0.8:
        return float("inf")
    pairs = [(step.exploit_probs, truth.exploit_probs), (step.explore_probs, truth.explore_probs)]
    return max((a - b)[agree].abs().max().item() for a, b in pairs)
