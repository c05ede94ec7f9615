"""LED on against plain sampling on the same build: tokens/s, time to first token, inter-token latency.

Two real servers with the embedded model (or --model-path), one with LED and one baseline, are loaded in turn, never at
once; pairs alternate in order. The ratio is the median over pairs; `cpu_ratio` is the same of tokens per CPU second of
the server's processes. A process is a few percent faster or slower than the next for as long as it lives, as its memory
happens to lie: `--starts` takes several, `ratio_starts` tells the median of each. No number is printed if LED explored
nothing.

    python benchmarks/bench_server.py --json
    python benchmarks/bench_server.py --speculative --json    # LED inside speculative decoding: benchmarks.speculation
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import speculation
from benchmarks.load import Window, cpu_seconds, run_window
from benchmarks.provenance import provenance
from led_sglang.cli import files, http_client
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.config.methods import METHODS
from led_sglang.embedded.problems import generate
from led_sglang.serving.child import Server

RESULTS = Path(__file__).parent / "results" / "server.jsonl"


@dataclass
class Pair:
    baseline: Window
    led: Window

    @property
    def ratio(self) -> float:
        return self.led.tokens_per_s / self.baseline.tokens_per_s

    @property
    def cpu_ratio(self) -> float:
        return self.led.tokens_per_cpu_s / self.baseline.tokens_per_cpu_s


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=integer(1), nargs="+", default=[1, 8, 64])
    parser.add_argument("--starts", type=integer(1), default=1, help="fresh pairs of servers (default: 1)")
    parser.add_argument("--rounds", type=integer(1), default=5, help="pairs of windows for each concurrency and start")
    parser.add_argument("--seconds", type=number(0, includes_low=False), default=8.0, help="length of a window")
    parser.add_argument("--warm-seconds", type=number(0), default=2.0, help="load before a window that does not count")
    parser.add_argument("--max-tokens", type=integer(1), default=256)
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="every answer has --max-tokens: a method whose answers are shorter is not charged for more prompts",
    )
    parser.add_argument("--temperature", type=number(0), default=0.6)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[name for name in METHODS if name != "none"],
        default=["led"],
        help="of the LED side",
    )
    parser.add_argument("--baseline", choices=("disabled", "off"), default="disabled", help="disabled: stock SGLang")
    parser.add_argument("--against", type=Path, help="a checkout: the baseline is its server, with LED on")
    parser.add_argument("--model-path", default=None)
    parser.add_argument("--server-args", default="", help="more arguments for both servers")
    parser.add_argument("--json", action="store_true", help="last line: one JSON document")
    parser.add_argument("--append", action="store_true", help=f"append the lines to {RESULTS.name} under results/")
    return parser.parse_args()


def counters(url: str) -> dict[str, Any]:
    found: dict[str, Any] = http_client.get_object(f"{url}/led/info")["counters"]
    return found


@dataclass
class Cell:
    """What was measured of one method at one concurrency: pairs by start of the servers, and what LED did."""

    starts: list[list[Pair]] = field(default_factory=list)
    tokens: int = 0
    explored: int = 0


def measure(
    options: argparse.Namespace, baseline: Server, led: Server, concurrency: int, method: str, cell: Cell
) -> None:
    """One start's windows. Raises SystemExit if the method did nothing."""
    texts = [problem.question for problem in generate("held_out", 256, seed=7)]
    length = {"ignore_eos": True} if options.ignore_eos else {}
    plain = {"temperature": options.temperature, "max_tokens": options.max_tokens, "extra_body": length}
    with_led = {**plain, "extra_body": {**length, "custom_params": {"led": {"method": method}}}}
    before = counters(led.url)
    pairs = []
    for i in range(options.rounds):
        sides = [(baseline, plain if options.against is None else with_led), (led, with_led)]
        windows = {}
        for server, body in sides if i % 2 == 0 else reversed(sides):
            cpu = cpu_seconds(server.process.pid)
            window = asyncio.run(
                run_window(server.url, texts, concurrency, options.seconds, options.warm_seconds, body, 31 * i)
            )
            window.cpu_s = cpu_seconds(server.process.pid) - cpu
            windows[server.url] = window
        pairs.append(Pair(windows[baseline.url], windows[led.url]))
    tokens, explored = work_done(before, counters(led.url), method)
    cell.starts.append(pairs)
    cell.tokens += tokens
    cell.explored += explored


def work_done(before: dict[str, Any], after: dict[str, Any], method: str) -> tuple[int, int]:
    """LED's tokens and those explored. Raises SystemExit where a number would mean nothing."""
    requests = after["requests"].get(method, 0) - before["requests"].get(method, 0)
    tokens = after["led_tokens"] - before["led_tokens"]
    explored = after["explored_tokens"] - before["explored_tokens"]
    is_idle = not requests or (method == "led" and not explored)
    if is_idle or after["fallbacks"] or after["step_failures"]:
        raise SystemExit(f"no number: {requests} requests of {method}, {explored} tokens explored, counters {after}")
    return tokens, explored


def line(options: argparse.Namespace, method: str, concurrency: int, cell: Cell) -> dict[str, Any]:
    """Of the table."""
    pairs = [pair for start in cell.starts for pair in start]

    def gaps(side: str, share: float) -> float:
        values = sorted(gap for pair in pairs for gap in getattr(pair, side).gaps_s)
        return round(1000 * values[min(int(share * len(values)), len(values) - 1)], 3)

    def median(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    def first_token_ms(side: str) -> float | None:
        """None where all answers of the window had begun before it."""
        values = [second for pair in pairs for second in getattr(pair, side).first_token_s]
        return 1000 * median(values) if values else None

    ratios = [pair.ratio for pair in pairs]
    return {
        "method": method,
        "model": Path(options.model_path).name if options.model_path else "embedded",
        "server_args": options.server_args,
        "ignore_eos": options.ignore_eos,
        "concurrency": concurrency,
        "baseline_tok_s": median([pair.baseline.tokens_per_s for pair in pairs]),
        "led_tok_s": median([pair.led.tokens_per_s for pair in pairs]),
        "ratio": median(ratios),
        "ratio_starts": [median([pair.ratio for pair in start]) for start in cell.starts],
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "cpu_ratio": median([pair.cpu_ratio for pair in pairs]),
        "baseline_ttft_ms_p50": first_token_ms("baseline"),
        "led_ttft_ms_p50": first_token_ms("led"),
        "baseline_itl_ms_p50": gaps("baseline", 0.5),
        "led_itl_ms_p50": gaps("led", 0.5),
        "baseline_itl_ms_p99": gaps("baseline", 0.99),
        "led_itl_ms_p99": gaps("led", 0.99),
        "explored_share": round(cell.explored / cell.tokens, 4) if method == "led" else 0.0,
    }


def baseline_server(options: argparse.Namespace, more: list[str], enabled: list[str], log: Path) -> Server:
    """Stock SGLang, or LED as another checkout has it."""
    if options.against is None:
        return Server("--led", options.baseline, *more, log=log)
    environment = {"PYTHONPATH": str(options.against.resolve())}
    return Server("--led", "on", *enabled, *more, log=log, environment=environment)


def command() -> None:
    if "--speculative" in sys.argv:
        speculation.command()
        return
    options = parse_arguments()
    if options.append:
        files.check_file(RESULTS)
    model = ["--model-path", options.model_path] if options.model_path else []
    more = model + options.server_args.split()
    enabled = ["--led-methods", ",".join(options.methods)]
    cells = {key: Cell() for key in itertools.product(options.methods, options.concurrency)}
    for _ in range(options.starts):
        with ExitStack() as stack:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            baseline = stack.enter_context(baseline_server(options, more, enabled, logs / "baseline.log"))
            led = stack.enter_context(Server("--led", "on", *enabled, *more, log=logs / "led.log"))
            for (method, concurrency), cell in cells.items():
                measure(options, baseline, led, concurrency, method, cell)
    lines = [line(options, method, concurrency, cell) for (method, concurrency), cell in cells.items()]
    for found in lines:
        print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        if options.append:
            files.append_line(RESULTS, json.dumps({**provenance(), **found}))
    if options.json:
        print(json.dumps(lines))


if __name__ == "__main__":
    sys.exit(guarded("bench_server", command))
