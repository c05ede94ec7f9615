"""LED inside speculative decoding: tokens per verification and tokens/s of LED, plain sampling and greedy.

One server for each way to draft, with the embedded model (or --model-path); the three kinds of requests alternate on
it. Each has questions of its own: NGRAM drafts what it has seen, an answer to the same question too.
`python benchmarks/bench_server.py --speculative` is the same command.

    python -m benchmarks.speculation --json
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from led_sglang.cli import files, http_client
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.embedded import draft
from led_sglang.embedded.problems import generate
from led_sglang.serving.child import Server

RESULTS = Path(__file__).parent / "results" / "speculation.jsonl"
DRAFT = "DRAFT"  # stands for the folder of the embedded model's draft
STANDALONE = ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", DRAFT)
STEPS = ("--speculative-num-steps", "3", "--speculative-eagle-topk")
NGRAM = ("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens")
SHAPES: dict[str, tuple[str, ...]] = {
    "NGRAM chain of 6": (*NGRAM, "6", "--speculative-ngram-max-bfs-breadth", "1"),
    "NGRAM tree of 12": (*NGRAM, "12", "--speculative-ngram-max-bfs-breadth", "4"),
    "STANDALONE chain of 4": (*STANDALONE, *STEPS, "1", "--speculative-num-draft-tokens", "4"),
    "STANDALONE tree of 8": (*STANDALONE, *STEPS, "3", "--speculative-num-draft-tokens", "8"),
    "none": (),
}


@dataclass
class Cell:
    """One kind of request on one server."""

    num_tokens: int = 0
    num_verified: int = 0
    num_led: int = 0
    num_explored: int = 0
    rates: list[float] = field(default_factory=list)  # tokens/s of each round

    @property
    def per_verify(self) -> float | None:
        """None without speculation."""
        return self.num_tokens / self.num_verified if self.num_verified else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--concurrency", type=integer(1), default=8)
    parser.add_argument("--rounds", type=integer(1), default=5)
    parser.add_argument("--requests", type=integer(1), default=32, help="of each kind in a round (default: 32)")
    parser.add_argument("--max-tokens", type=integer(1), default=256)
    parser.add_argument("--temperature", type=number(0, includes_low=False), default=0.6)
    parser.add_argument("--model-path", default=None, help="with --shapes of NGRAM: the others draft for the embedded")
    parser.add_argument("--json", action="store_true", help="last line: one JSON document")
    parser.add_argument("--append", action="store_true", help=f"append the lines to {RESULTS.name} under results/")
    return parser.parse_args(sys.argv[1:] if "--speculative" not in sys.argv else _without_flag())


def _without_flag() -> list[str]:
    return [word for word in sys.argv[1:] if word != "--speculative"]


def kinds(temperature: float) -> dict[str, dict[str, Any]]:
    none = {"led": {"method": "none"}}
    return {
        "led": {"temperature": temperature, "custom_params": {"led": {}}},
        "sampled": {"temperature": temperature, "custom_params": none},
        "greedy": {"temperature": 0.0, "custom_params": none},
    }


def run_round(url: str, texts: list[str], sampling: dict[str, Any], options: argparse.Namespace, cell: Cell) -> None:
    """A closed loop of --concurrency clients."""

    def ask(text: str) -> dict[str, Any]:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": options.max_tokens,
            "return_meta_info": True,
            **sampling,
        }
        answer = http_client.post(f"{url}/v1/chat/completions", body, None, 600).json()
        meta: dict[str, Any] = answer["choices"][0]["meta_info"]
        return meta

    started = time.perf_counter()
    with ThreadPoolExecutor(options.concurrency) as pool:
        found = list(pool.map(ask, texts))
    seconds = time.perf_counter() - started
    num_tokens = sum(meta["completion_tokens"] for meta in found)
    cell.rates.append(num_tokens / seconds)
    cell.num_tokens += num_tokens
    cell.num_verified += sum(meta.get("spec_verify_ct") or 0 for meta in found)
    cell.num_led += sum(meta.get("led_stats", {}).get("led_tokens", 0) for meta in found)
    cell.num_explored += sum(meta.get("led_stats", {}).get("explored_tokens", 0) for meta in found)


def measure(url: str, options: argparse.Namespace) -> dict[str, Cell]:
    asked = kinds(options.temperature)
    cells = {kind: Cell() for kind in asked}
    number = options.requests * options.rounds * len(cells) + options.concurrency
    texts = iter([problem.question for problem in generate("held_out", number, seed=7)])
    first = list(itertools.islice(texts, options.concurrency))
    for kind in cells:  # what is compiled or cached at a first request
        run_round(url, first, asked[kind], options, Cell())
    for i in range(options.rounds):
        for kind in cells if i % 2 == 0 else reversed(cells):
            run_round(url, list(itertools.islice(texts, options.requests)), asked[kind], options, cells[kind])
    return cells


def line(shape: str, options: argparse.Namespace, cells: dict[str, Cell]) -> dict[str, Any]:
    """Raises SystemExit where LED explored nothing."""
    if not cells["led"].num_explored:
        raise SystemExit(f"no number: LED explored nothing ({shape})")
    per_verify = {
        kind: cell.num_tokens / cell.num_verified if cell.num_verified else None for kind, cell in cells.items()
    }
    led, sampled = per_verify["led"], per_verify["sampled"]
    return {
        "shape": shape,
        "temperature": options.temperature,
        "concurrency": options.concurrency,
        "tokens_per_verify": {kind: None if value is None else round(value, 3) for kind, value in per_verify.items()},
        "led_over_sampled": None if led is None or sampled is None else round(led / sampled, 3),
        "tokens_per_s": {kind: round(statistics.median(cell.rates), 1) for kind, cell in cells.items()},
        "explored_share": round(cells["led"].num_explored / cells["led"].num_led, 4),
        "tokens": {kind: cell.num_tokens for kind, cell in cells.items()},
    }


def command() -> None:
    options = parse_arguments()
    if options.append:
        files.check_file(RESULTS)
    lines = []
    model = ["--model-path", options.model_path] if options.model_path else []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            arguments = [str(draft.save(folder / "draft")) if word == DRAFT else word for word in SHAPES[shape]]
            with Server(*model, *arguments, log=folder / "server.log") as server:
                lines.append(line(shape, options, measure(server.url, options)))
        print(json.dumps(lines[-1]), flush=True)
        if options.append:
            files.append_line(RESULTS, json.dumps({**provenance(), **lines[-1]}))
    if options.json:
        print(json.dumps(lines))


if __name__ == "__main__":
    sys.exit(guarded("speculation", command))
