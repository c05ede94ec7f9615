"""What one traced client costs the others: 64 clients of one LED server, one of them with or without `trace: true`.

Windows with and without the trace alternate in order; the number is the median over pairs of the other 63 clients'
tokens/s with the trace over without it. No number is printed if no trace arrived.

    python -m benchmarks.bench_trace --json
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Window, run_window
from benchmarks.provenance import provenance
from led_sglang.child_server import Server
from led_sglang.embedded.problems import generate

RESULTS = Path(__file__).parent / "results" / "trace.jsonl"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=63)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of windows")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warm-seconds", type=float, default=2.0)
    parser.add_argument("--url", default=None, help="of a running server (default: start the embedded one)")
    parser.add_argument("--json", action="store_true", help="last line: one JSON document")
    parser.add_argument("--append", action="store_true", help=f"append the line to {RESULTS.name} under results/")
    return parser.parse_args()


async def one_client(url: str, texts: list[str], until: float, is_traced: bool) -> int:
    """Streams over /generate, where a trace shows; returns the number of traced tokens that arrived."""
    num_traced = 0
    sampling = {"temperature": 0.6, "max_new_tokens": 256, "custom_params": {"led": {"trace": is_traced}}}
    async with httpx.AsyncClient(timeout=120) as http:
        for text in texts:
            prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            body = {"text": prompt, "sampling_params": sampling, "stream": True}
            last = ""
            async with http.stream("POST", f"{url}/generate", json=body) as answer:
                async for line in answer.aiter_lines():
                    last = line if line.startswith("data: {") else last
                    if time.monotonic() >= until:
                        break
            num_traced += len(json.loads(last[6:])["meta_info"].get("led_depth", ())) if last else 0
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


def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Raises SystemExit if no trace arrived."""
    texts = [problem.question for problem in generate("held_out", 256, seed=7)]
    ratios, rates, num_traced = [], {True: [], False: []}, 0
    for i in range(options.rounds):
        pair: dict[bool, Window] = {}
        for is_traced in (False, True) if i % 2 == 0 else (True, False):
            pair[is_traced], traced = asyncio.run(window(url, texts, options, is_traced, 31 * i))
            num_traced += traced
            rates[is_traced].append(pair[is_traced].tokens_per_s)
        ratios.append(pair[True].tokens_per_s / pair[False].tokens_per_s)
        print(f"pair {i + 1}: {ratios[-1]:.4f}", flush=True)
    if not num_traced:
        raise SystemExit("no number: no trace arrived")
    return {
        "others": options.others,
        "without_trace_tok_s": round(statistics.median(rates[False]), 1),
        "with_trace_tok_s": round(statistics.median(rates[True]), 1),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "traced_tokens": num_traced,
    }


def main() -> None:
    options = parse_arguments()
    if options.url:
        line = measure(options.url, options)
    else:
        with tempfile.TemporaryDirectory() as logs, Server(log=Path(logs) / "led.log") as server:
            line = measure(server.url, options)
    print(", ".join(f"{key} {value}" for key, value in line.items()))
    if options.append:
        with RESULTS.open("a") as file:
            file.write(json.dumps({**provenance(), **line}) + "\n")
    if options.json:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
