"""What both forms of a step cost over batch sizes, by CUDA graph replays; host time and times by kernel beside it."""

import argparse
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks.gpu.cases import Case, make_case, make_head
from benchmarks.gpu.whole_step import WholeStep
from benchmarks.measure import Run, kernel_times, measure_runs, peak_bandwidth, peak_extra_mib, peak_flops

RARE = 0.01  # a batch in which no row explores is measured too where it is more frequent
NUM_PROFILED = 3
Lines = Iterator[dict[str, Any]]

head_of = lru_cache(maxsize=1)(make_head)


def units(args: argparse.Namespace) -> dict[str, Callable[[], Lines]]:
    found: dict[str, Callable[[], Lines]] = {"ceilings": partial(ceilings, args)}
    return found | {f"rows_{num_rows}": partial(measure, num_rows, args) for num_rows in args.rows}


def exploring_counts(num_rows: int, rate: float) -> list[int]:
    """Numbers of exploring rows to measure: about the mean one, and none where that is not rare.

    One exploring row already costs the second read of the weight, so a small batch is two kinds of steps.
    """
    some = max(1, round(rate * num_rows)) if rate > 0 else 0
    is_none_frequent = (1 - rate) ** num_rows > RARE
    return sorted({some, 0} if is_none_frequent else {some}, reverse=True)


def measure(num_rows: int, args: argparse.Namespace) -> Lines:
    vocab, hidden, depth = (101, 32, 3) if args.dry_run else (151936, 2560, 8)
    head = head_of(vocab, hidden, torch.bfloat16, args.device)
    whole = make_case(head, num_rows, depth, 0)
    for num_exploring in exploring_counts(num_rows, args.explore_rate):
        case = whole.with_coins(num_exploring)
        about = {
            "rows": num_rows,
            "explored_rows": num_exploring,
            "one_pass_rows": case.one_pass_rows(),
            "explore_rate": args.explore_rate,
        }
        for line in lines_of(case, num_exploring > 0, args):
            yield about | line


def runs_of(case: Case, is_all: bool) -> dict[str, Run]:
    """`product`: the engine's head alone, which what begins with one_pass or ends with it contains."""
    step = WholeStep(case)
    runs: dict[str, Run] = {
        "product": case.product,
        "step_two_pass": step.two_pass,
        "step_one_pass": step.one_pass,
        "two_pass_triton": partial(case.two_pass, "triton"),
        "one_pass_triton": partial(case.one_pass, "triton"),
    }
    if is_all:
        runs["two_pass_fused"] = partial(case.two_pass, "fused")
        runs["one_pass_fused"] = partial(case.one_pass, "fused")
        runs["naive"] = partial(case.step, "eager")
    return runs


def lines_of(case: Case, is_all: bool, args: argparse.Namespace) -> Lines:
    runs, faults = runs_of(case, is_all), []

    def note(name: str, error: Exception) -> None:
        faults.append({"kind": "fault", "run": name, "error": f"{type(error).__name__}: {error}"})

    times = measure_runs(runs, args.device, args.repeats, note)
    yield from faults
    for name, found in times.items():
        yield {"kind": "time", "run": name, **found.line()}
    for name in ("step_two_pass", "step_one_pass") if is_all else ():
        if name in times:
            yield kernels_line(name, runs[name], args)
    for name in ("two_pass_triton", "one_pass_triton", "naive") if is_all else ():
        if name in times:
            yield {"kind": "memory", "run": name, "peak_mib": round(peak_extra_mib(runs[name], args.device), 2)}


def kernels_line(name: str, run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """A fault of the profiler's is a line: what is timed after it does not depend on it."""
    try:
        kernels = kernel_times(run, args.device, 1 if args.dry_run else NUM_PROFILED)
    except Exception as error:
        return {"kind": "fault", "run": name, "error": f"torch.profiler: {type(error).__name__}: {error}"}
    if not kernels:
        return {"kind": "fault", "run": name, "error": "torch.profiler saw no kernel"}
    return {"kind": "kernels", "run": name, "timed_by": "torch.profiler", "kernels": kernels[:24]}


def ceilings(args: argparse.Namespace) -> Lines:
    """What this device reaches at best: to hold the rest against."""
    size, num_bytes = (64, 1 << 20) if args.dry_run else (8192, 4 << 30)
    yield {
        "kind": "ceilings",
        "flops": peak_flops(torch.bfloat16, args.device, size),
        "bytes_per_s": peak_bandwidth(args.device, num_bytes),
        "timed_by": "host clock",
    }
