"""Every backend and form on this device against the float64 reference, by error budget; goes on past a line outside."""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, make_head
from benchmarks.gpu.row_kernels import CHECKS
from benchmarks.gpu.scenarios import SCENARIOS, Size, on_two_ranks
from led_sglang.ops import LedStep, led_step

BUDGET = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}  # of a probability
MIN_SAME_DEPTH = 0.8  # two depths of all but equal entropy may be told apart either way
OTHER_DTYPES = ("plain", "without_lse", "everything", "capped")  # of float16 and float32: one of each code path
EAGER = ("plain", "mixed_rows", "trace")
Lines = Iterator[dict[str, Any]]

head_of = lru_cache(maxsize=2)(make_head)


def units(args: argparse.Namespace) -> dict[str, Callable[[], Lines]]:
    """By name, in order of what a lease would miss most."""
    size = Size(3, 101, 32, 3) if args.dry_run else Size(17, 32001, 512, 8)
    found: dict[str, Callable[[], Lines]] = {}
    for dtype in BUDGET:
        names = tuple(SCENARIOS) if dtype == torch.bfloat16 else OTHER_DTYPES
        for name in names:
            found[f"{_name(dtype)}/{name}"] = partial(run_scenario, name, dtype, size, args.device)
        if dtype == torch.bfloat16:
            found["bfloat16/two_ranks"] = partial(run_two_ranks, dtype, size, args.device)
            served = Size(3, 203, 48, 3) if args.dry_run else Size(37, 151936, 2560, 8)
            found["bfloat16/served_shape"] = partial(run_scenario, "without_lse", dtype, served, args.device)
            found |= {f"kernel/{name}": partial(run_check, check, args.device) for name, check in CHECKS.items()}
    return found


def run_scenario(name: str, dtype: torch.dtype, size: Size, device: torch.device) -> Lines:
    """A line for each backend and form."""
    case = SCENARIOS[name](head_of(size.vocab, size.hidden, dtype, device), size)
    truth = reference(case)
    for backend in ("triton", "fused", "eager") if name in EAGER else ("triton", "fused"):
        for form in ("two_pass", "one_pass") if backend != "eager" else ("two_pass",):
            yield line(getattr(case, form)(backend), truth, case, dtype) | {
                "scenario": name, "vocab": size.vocab, "backend": backend, "form": form
            }  # fmt: skip


def run_two_ranks(dtype: torch.dtype, size: Size, device: torch.device) -> Lines:
    for name in ("plain", "without_lse"):
        case = SCENARIOS[name](head_of(size.vocab, size.hidden, dtype, device), size)
        truth = reference(case)
        for backend in ("triton", "fused"):
            for form in ("two_pass", "one_pass"):
                found = on_two_ranks(case, lambda part, form=form, backend=backend: getattr(part, form)(backend))
                yield line(found, truth, case, dtype) | {
                    "scenario": f"two_ranks/{name}", "vocab": size.vocab, "backend": backend, "form": form
                }  # fmt: skip


def run_check(check: Callable[[torch.device], str | None], device: torch.device) -> Lines:
    """Of a kernel whose result must be bit-equal to plain torch's."""
    wrong = check(device)
    yield {"ok": wrong is None, "wrong": wrong, "backend": "triton"}


def line(found: LedStep, truth: LedStep, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    compared = compare(found, truth, case)
    is_fine = compared["error"] <= BUDGET[dtype] and compared["wrong"] is None
    return {"ok": is_fine, **compared, "budget": BUDGET[dtype], "dtype": _name(dtype), "rows": len(truth.ok)}


def compare(found: LedStep, truth: LedStep, case: Case) -> dict[str, Any]:
    """`error`: largest difference of a probability where the depths agree; `wrong`: what must agree and does not.

    Inactive rows hold anything, and what is told of the explore branch is meant where it was asked for.
    """
    active = case.inputs.active
    same = (found.depth == truth.depth) | ~active
    same_tokens = (found.token_ids == truth.token_ids) | ~active
    explored = active & found.explored
    reported = active & (case.rows.trace | found.explored) & same
    wrong = None
    if not torch.equal(explored, active & truth.explored):
        wrong = "explored"
    elif not torch.equal(found.ok | ~active, truth.ok | ~active):
        wrong = "ok"
    elif not same.float().mean() >= MIN_SAME_DEPTH:
        wrong = "depth"
    vocab = case.batch_logits.shape[1]
    errors = [_distance(found.exploit_probs, truth.exploit_probs, found, truth, active, vocab)]
    errors.append(_distance(found.explore_probs, truth.explore_probs, found, truth, reported, vocab))
    errors.append(_largest(found.confidence - truth.confidence, active))
    if found.entropy is not None and truth.entropy is not None:
        errors.append(_largest(found.entropy - truth.entropy, reported))
    if found.logprob is not None and truth.logprob is not None:
        errors.append(_largest(found.logprob.exp() - truth.logprob.exp(), reported & same_tokens))
    return {
        "error": float("inf") if any(map(math.isnan, errors)) else max(errors),
        "wrong": wrong,
        "depths_differ": int((~same).sum()),
        "tokens_differ": int((~same_tokens).sum()),
        "explored_rows": int(explored.sum()),
    }


def _distance(one: Tensor, other: Tensor, found: LedStep, truth: LedStep, where: Tensor, vocab: int) -> float:
    """Of two distributions over candidates that may be listed in any order: (R, K) each."""
    shape = len(where), vocab
    dense = one.new_zeros(shape).scatter_add_(1, found.candidate_ids, one.nan_to_num(nan=torch.inf))
    dense -= torch.zeros_like(dense).scatter_add_(1, truth.candidate_ids, other.to(one.dtype))
    return _largest(dense.abs().amax(1), where)


def _largest(values: Tensor, where: Tensor) -> float:
    return float(values[where].abs().max().item()) if bool(where.any()) else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def reference(case: Case) -> LedStep:
    return led_step(case.final_logits, case.latents, case.head, case.rows, case.inputs, backend="reference")
