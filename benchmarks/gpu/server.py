"""A whole server with a Qwen3-4B-shaped model of random weights, LED off and on: the time of a decode step.

A batch of requests of one length is answered, then one of a greater length; the prompts, their prefill and the client
are the same, so a decode step takes the difference of the times over the difference of the lengths.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import explore_rate
from benchmarks.gpu.server_modes import MODES

USES_DEVICE = False  # the server's memory is the server's alone
MODEL = Path(__file__).parent / "qwen3_4b_shape"
TOKENIZER = Path(__file__).parents[2] / "led_sglang" / "embedded" / "model"
MAX_PAIRS = 3
Lines = Iterator[dict[str, Any]]


def units(args: argparse.Namespace) -> dict[str, Callable[[], Lines]]:
    """By mode, each a server of its own."""
    return {mode: partial(measure_mode, mode, args) for mode in args.modes}


def lengths_of(args: argparse.Namespace) -> tuple[int, int, int]:
    """Prompt tokens and the two numbers of new ones: 256 such requests need 83 GiB of keys and values."""
    return (16, 4, 12) if args.dry_run else (2048, 64, 320)


def measure_mode(mode: str, args: argparse.Namespace) -> Lines:
    """A line for each batch size."""
    from led_sglang.serving.child import Server

    has_led = mode != "off"
    arguments = [*model_arguments(args), *MODES[mode], *(["--led-phase", "all"] if has_led else [])]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        environment = explore_rate.environment(Path(folder) / "plugin", args.explore_rate) if has_led else {}
        with Server(*arguments, log=Path(folder) / f"{mode}.log", environment=environment) as server:
            yield {"kind": "start", "mode": mode, "seconds": round(time.monotonic() - started, 1)}
            for num_rows in args.rows:
                yield {"kind": "time", "mode": mode, "rows": num_rows, **measure(server.url, mode, num_rows, args)}


def model_arguments(args: argparse.Namespace) -> list[str]:
    """No prefix is cached: each request of a pair is to prefill its whole prompt."""
    if args.dry_run:
        return ["--max-running-requests", "8", "--disable-radix-cache"]  # the embedded model
    # Random weights need no tokenizer of their own, but the server needs one.
    shape = ["--model-path", str(MODEL), "--load-format", "dummy", "--tokenizer-path", str(TOKENIZER)]
    rows = ["--max-running-requests", str(max(args.rows)), "--context-length", "4096"]
    return [*shape, *rows, "--disable-radix-cache", "--attention-backend", "triton"]


def measure(url: str, mode: str, num_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Raises AssertionError where the numbers would mean nothing."""
    num_prompt, short, long = lengths_of(args)
    answer(url, num_rows, num_prompt, short)  # compiles and warms up
    before = counters(url, mode)
    num_pairs = 1 if args.dry_run else MAX_PAIRS
    times = [
        (answer(url, num_rows, num_prompt, short), answer(url, num_rows, num_prompt, long)) for _ in range(num_pairs)
    ]
    steps = [1e3 * (whole - part) / (long - short) for part, whole in times]
    step_ms = statistics.median(steps)
    facts = work_done(before, counters(url, mode), num_rows * num_pairs * (short + long), args)
    if step_ms <= 0:
        raise AssertionError(f"a longer answer took less time than a shorter one: {times}")
    return {
        "step_ms": round(step_ms, 4),
        "step_ms_min": round(min(steps), 4),
        "step_ms_max": round(max(steps), 4),
        "n": num_pairs,
        "timed_by": f"host clock, answers of {long} less those of {short} tokens",
        "tokens_per_s": round(num_rows / step_ms * 1e3, 1),
        "prompt_tokens": num_prompt,
        "memory_mib": used_memory_mib(),
        **facts,
    }


def answer(url: str, num_rows: int, num_prompt: int, num_tokens: int) -> float:
    """Seconds until all requests of a batch are answered: one request to the server, so that all begin together."""
    from led_sglang.cli import http_client

    prompts = [[(row * 7919 + i * 31) % 1000 + 1 for i in range(num_prompt)] for row in range(num_rows)]
    sampling = {"temperature": 0.6, "max_new_tokens": num_tokens, "ignore_eos": True}
    body = {"input_ids": prompts, "sampling_params": sampling, "stream": False}
    started = time.perf_counter()
    response = http_client.post(f"{url}/generate", body, timeout_s=600)
    elapsed = time.perf_counter() - started
    found = [one["meta_info"]["completion_tokens"] for one in response.json()]
    if found != [num_tokens] * num_rows:
        raise AssertionError(f"answers have {sorted(set(found))} tokens, not {num_tokens}")
    return elapsed


def counters(url: str, mode: str) -> dict[str, Any]:
    """/led/info; empty for a stock server."""
    from led_sglang.cli import http_client

    return {} if mode == "off" else http_client.get_object(f"{url}/led/info")


def work_done(
    before: dict[str, Any], after: dict[str, Any], num_tokens: int, args: argparse.Namespace
) -> dict[str, Any]:
    """What LED did meanwhile. Raises AssertionError where it did not decode all of the tokens."""
    if not after:
        return {}
    led, explored, fallbacks = (
        after["counters"][name] - before["counters"][name] for name in ("led_tokens", "explored_tokens", "fallbacks")
    )
    if led < num_tokens or fallbacks or after["step_failures"]:
        raise AssertionError(f"LED decoded {led} of {num_tokens} tokens, {fallbacks} fell back: no number")
    steps = {form: count - before["form"]["steps"][form] for form, count in after["form"]["steps"].items()}
    return {
        "explored_share": round(explored / led, 4),
        "explore_rate": args.explore_rate,
        "form_steps": steps,
        "form_fault": after["form"]["fault"],
        "backend": after["backend_used"],
        "backend_fault": after["backend_fault"],
    }


def used_memory_mib() -> float | None:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
