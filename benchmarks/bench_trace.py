"""What one traced client costs the others: 64 clients of one LED server, one of them with or without `trace: true`.

Windows with and without the trace alternate in order. `ratio` is the median over pairs of the others' tokens/s with the
trace over without it; `cpu_ratio` the same of the server's tokens per CPU second (all of its processes, all
clients), which other work on the machine disturbs less. No number is printed if no trace arrived.

    python -m benchmarks.bench_trace --json
    python -m benchmarks.bench_trace --step     # no server: CPU time of one LED step with and without one traced row
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from operator import truediv
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from benchmarks.load import Window, cpu_seconds, run_window
from benchmarks.provenance import provenance
from led_sglang.cli import files, http_client
from led_sglang.cli.arguments import integer, number, url
from led_sglang.cli.endings import guarded
from led_sglang.embedded.problems import generate
from led_sglang.ops import Head, LedRows, StepInputs, led_step
from led_sglang.serving.child import Server

RESULTS = Path(__file__).parent / "results" / "trace.jsonl"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help="time the step alone, in CPU time of its thread")
    parser.add_argument("--others", type=integer(0), default=63)
    parser.add_argument("--rounds", type=integer(1), default=7, help="pairs of windows")
    parser.add_argument("--seconds", type=number(0, includes_low=False), default=8.0)
    parser.add_argument("--warm-seconds", type=number(0), default=2.0)
    parser.add_argument(
        "--url", type=url, default=None, help="of a server with --enable-metrics (default: start the embedded one)"
    )
    parser.add_argument("--pid", type=integer(1), default=None, help="of the process that --url belongs to")
    parser.add_argument("--json", action="store_true", help="last line: one JSON document")
    parser.add_argument("--append", action="store_true", help=f"append the line to {RESULTS.name} under results/")
    options = parser.parse_args()
    if options.url and not (options.pid and psutil.pid_exists(options.pid)):
        parser.error("--url needs --pid, of a process that is there")
    return options


def measure_step(num_rows: int, rounds: int = 400) -> dict[str, Any]:
    """At the embedded model's sizes, with the copies of a trace to Python that `StepRecord` makes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits, latents = 6 * torch.randn(num_rows, 832), torch.randn(7, num_rows, 128)
    head = Head(0.1 * torch.randn(832, 128), 832)
    inputs = StepInputs(torch.ones(num_rows, dtype=torch.bool), *torch.rand(2, num_rows, dtype=torch.float64))
    times: dict[bool, list[float]] = {False: [], True: []}
    first = torch.arange(num_rows) == 0
    all_rows = {is_traced: LedRows.uniform(num_rows, trace=first & is_traced) for is_traced in (False, True)}
    for i in range(2 * rounds):
        is_traced = i % 2 == 1
        start = time.thread_time()
        step = led_step(logits, latents, head, all_rows[is_traced], inputs)
        if is_traced:
            for column in (step.confidence, step.entropy, step.logprob, step.candidate_ids):
                column.tolist()
            step.exploit_probs.tolist(), step.explore_probs.tolist(), step.depth_entropy[0].tolist()
        times[is_traced].append(1000 * (time.thread_time() - start))
    plain, traced = (statistics.median(times[is_traced]) for is_traced in (False, True))
    return {
        "rows": num_rows,
        "step_ms": round(plain, 3),
        "traced_step_ms": round(traced, 3),
        "extra_ms": round(traced - plain, 3),
    }


async def one_client(url: str, texts: list[str], until: float, is_traced: bool) -> int:
    """Streams over /generate, where a trace shows; returns the number of traced tokens that arrived."""
    num_traced = 0
    sampling = {"temperature": 0.6, "max_new_tokens": 256, "custom_params": {"led": {"trace": is_traced}}}
    async with httpx.AsyncClient(timeout=120) as http:
        for text in texts:
            prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            body = {"text": prompt, "sampling_params": sampling, "stream": True}
            async with http.stream("POST", f"{url}/generate", json=body) as answer:
                await http_client.checked_stream(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        num_traced += len(json.loads(line[6:])["meta_info"].get("led_depth", ()))
                    if time.monotonic() >= until:
                        break
            if time.monotonic() >= until:
                break
    return num_traced


async def window(
    url: str, texts: list[str], options: argparse.Namespace, is_traced: bool, seed: int
) -> tuple[Window, int]:
    until = time.monotonic() + options.warm_seconds + options.seconds
    body: dict[str, Any] = {"temperature": 0.6, "max_tokens": 256}
    body["extra_body"] = {"custom_params": {"led": True}}
    others = run_window(url, texts, options.others, options.seconds, options.warm_seconds, body, seed)
    return await asyncio.gather(others, one_client(url, texts, until, is_traced))  # type: ignore[return-value]


def num_tokens(url: str) -> float:
    """Generated by the server since its start."""
    lines = http_client.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("led_sglang_rows_total"))


def measure(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Raises SystemExit if no trace arrived."""
    texts = [problem.question for problem in generate("held_out", 256, seed=7)]
    ratios, rates, num_traced = [], {True: [], False: []}, 0
    per_cpu: dict[bool, list[float]] = {True: [], False: []}
    for i in range(options.rounds):
        pair: dict[bool, Window] = {}
        for is_traced in (False, True) if i % 2 == 0 else (True, False):
            tokens, cpu = num_tokens(url), cpu_seconds(pid)
            pair[is_traced], traced = asyncio.run(window(url, texts, options, is_traced, 31 * i))
            per_cpu[is_traced].append((num_tokens(url) - tokens) / (cpu_seconds(pid) - cpu))
            num_traced += traced
            rates[is_traced].append(pair[is_traced].tokens_per_s)
        ratios.append(pair[True].tokens_per_s / pair[False].tokens_per_s)
        print(
            f"pair {i + 1}: {ratios[-1]:.4f}, per CPU second {per_cpu[True][-1] / per_cpu[False][-1]:.4f}", flush=True
        )
    if not num_traced:
        raise SystemExit("no number: no trace arrived")
    return {
        "others": options.others,
        "without_trace_tok_s": round(statistics.median(rates[False]), 1),
        "with_trace_tok_s": round(statistics.median(rates[True]), 1),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "cpu_ratio": round(statistics.median(map(truediv, per_cpu[True], per_cpu[False])), 4),
        "cpu_ratio_min": round(min(map(truediv, per_cpu[True], per_cpu[False])), 4),
        "cpu_ratio_max": round(max(map(truediv, per_cpu[True], per_cpu[False])), 4),
        "traced_tokens": num_traced,
    }


def command() -> None:
    options = parse_arguments()
    if options.append:
        files.check_file(RESULTS)
    if options.step:
        line = measure_step(options.others + 1)
    elif options.url:
        line = measure(options.url, options.pid, options)
    else:
        with tempfile.TemporaryDirectory() as logs, Server("--enable-metrics", log=Path(logs) / "led.log") as server:
            line = measure(server.url, server.process.pid, options)
    print(", ".join(f"{key} {value}" for key, value in line.items()))
    if options.append:
        files.append_line(RESULTS, json.dumps({**provenance(), **line}))
    if options.json:
        print(json.dumps(line))


if __name__ == "__main__":
    sys.exit(guarded("bench_trace", command))
