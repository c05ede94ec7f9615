"""Both forms against the paper's listing and against cuBLAS with a chunked log-sum-exp, over batch sizes."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.cases import Case, make
from benchmarks.measure import interleaved_median_ms, peak_bandwidth, peak_extra_mib, peak_flops


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each batch size, then the crossover of the fastest one-pass and coin-first paths."""
    vocab, hidden, depth = (257, 64, 3) if args.dry_run else (151936, 2560, 8)
    crossover = 0
    for num_rows in args.rows:
        case = make(num_rows, vocab, hidden, depth, args.explore_rate, torch.bfloat16, args.device)
        line = measure(case, num_rows, args)
        if line["one_pass_ms"] <= line["coin_first_ms"]:
            crossover = num_rows
        yield line
        del case
    yield {"one_pass_is_faster_up_to_rows": crossover, "explore_rate": args.explore_rate}


def measure(case: Case, num_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """`head`: the engine's product alone. The one-pass paths contain it, so it is taken off theirs."""
    runs = {
        "head": lambda: case.hidden @ case.head.weight.T,
        "naive": lambda: case.coin_first("eager"),
        "coin_first_cublas": lambda: case.coin_first("fused"),
        "coin_first_triton": lambda: case.coin_first("triton"),
        "one_pass_cublas": lambda: case.one_pass("fused"),
        "one_pass_triton": lambda: case.one_pass("triton"),
    }
    with torch.inference_mode():
        times = interleaved_median_ms(runs, args.device, args.repeats)
        peaks = {name: peak_extra_mib(run, args.device) for name, run in runs.items()}
    line: dict[str, Any] = {"rows": num_rows, "explore_rate": args.explore_rate}
    line |= {f"{name}_ms": round(value, 4) for name, value in times.items()}
    line |= {f"{name}_mib": round(value, 2) for name, value in peaks.items()}
    line["coin_first_ms"] = min(times["coin_first_cublas"], times["coin_first_triton"])
    line["one_pass_ms"] = max(min(times["one_pass_cublas"], times["one_pass_triton"]) - times["head"], 0.0)
    line["share_of_roofline"] = round(floor_ms(case, args) / max(line["coin_first_ms"], 1e-9), 3)
    return line


def floor_ms(case: Case, args: argparse.Namespace) -> float:
    """The second pass at this device's ceilings: head and final logits read once, or the exploring rows' product."""
    weight, num_layers = case.head.weight, len(case.latents)
    num_latents = round(args.explore_rate * len(case.hidden)) * num_layers
    num_bytes = case.final_logits.numel() * 4 + (weight.numel() * weight.element_size() if num_latents else 0)
    size = 64 if args.dry_run else 8192
    flops = peak_flops(weight.dtype, args.device, size)
    return 1e3 * max(2 * num_latents * weight.numel() / flops, num_bytes / peak_bandwidth(args.device, size**2 * 4))
