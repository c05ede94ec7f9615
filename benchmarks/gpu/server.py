"""A whole server with a Qwen3-4B-shaped model of random weights, LED off and on: latency over batch sizes."""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from led_sglang.cli import http_client
from led_sglang.serving.child import Server

MODEL = Path(__file__).parent / "qwen3_4b_shape"
TOKENIZER = Path(__file__).parents[2] / "led_sglang" / "embedded" / "model"
NUM_PROMPT_TOKENS = 2048
MODES = {
    "off": ["--led", "disabled"],
    "auto": [],
    "one_pass": ["--led-form", "one_pass"],
    "coin_first": ["--led-form", "coin_first"],
    "triton_one_pass": ["--led-form", "one_pass", "--led-backend", "triton"],
    "triton_coin_first": ["--led-form", "coin_first", "--led-backend", "triton"],
}


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each batch size and mode of MODES. All read the same prompts."""
    led = ["--led-phase", "all", "--led-bench-explore-rate", str(args.explore_rate)]
    for mode in args.modes:
        arguments = MODES[mode] if mode == "off" else [*MODES[mode], *led]
        log = Path(tempfile.mkdtemp()) / f"{mode}.log"
        with Server(*model_arguments(args), *arguments, log=log) as server:
            for num_rows in args.rows:
                yield {"mode": mode, **asyncio.run(measure(server.url, num_rows, args))} | facts(server.url, mode)


def model_arguments(args: argparse.Namespace) -> list[str]:
    if args.dry_run:
        return ["--max-running-requests", "8"]  # the embedded model
    # Random weights need no tokenizer of their own, but the server needs one.
    shape = ["--model-path", str(MODEL), "--load-format", "dummy", "--tokenizer-path", str(TOKENIZER)]
    return [*shape, "--attention-backend", "triton", "--max-running-requests", str(max(args.rows))]


async def measure(url: str, num_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Steady state: every request is past its prompt before a gap counts."""
    gaps: list[float] = []
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        tasks = [stream(client, url, i, args.seconds, gaps) for i in range(num_rows)]
        start = time.perf_counter()
        num_tokens = sum(await asyncio.gather(*tasks))
        elapsed = time.perf_counter() - start
    ordered = sorted(gaps)
    return {
        "rows": num_rows,
        "mean_ms": round(1e3 * statistics.fmean(ordered), 3),
        "p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "tokens_per_s": round(num_tokens / elapsed, 1),
        "memory_mib": device_memory_mib(),
    }


async def stream(client: httpx.AsyncClient, url: str, index: int, seconds: float, gaps: list[float]) -> int:
    prompt = [(index * 7919 + i * 31) % 1000 + 1 for i in range(64 if seconds < 5 else NUM_PROMPT_TOKENS)]
    sampling = {"temperature": 0.6, "max_new_tokens": 4096, "ignore_eos": True}
    if seconds < 5:
        sampling["max_new_tokens"] = 8
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    num_tokens, last, begun = 0, None, time.perf_counter()
    async with client.stream("POST", f"{url}/generate", json=body) as answer:
        await http_client.checked_stream(answer)
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now, num_tokens = time.perf_counter(), num_tokens + 1
            if last is not None:
                gaps.append(now - last)
            last = now
            if now - begun > seconds:
                break
    return num_tokens


def device_memory_mib() -> float | None:
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**20, 1)


def facts(url: str, mode: str) -> dict[str, Any]:
    """Refuses a number for LED if the counter did not move."""
    if mode == "off":
        return {}
    info = http_client.get_object(f"{url}/led/info")
    if not info["counters"]["led_tokens"]:
        raise AssertionError("the server decoded nothing with LED: no number")
    return {"form": info["form"], "counters": info["counters"]}
