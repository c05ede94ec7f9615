"""The same benchmark of two checkouts, in turn: is this one slower than that one?

    python benchmarks/against.py ../other --key led_ms --pairs 7 -- benchmarks/bench_ops.py --rows 8 --json

Each run is a process of its own, in its own checkout, whose benchmark prints a JSON document (an object, or a list of
objects) as its last line. The ratio is this checkout's value over the other's, pair by pair, in alternating order; the
median is what counts. `--append` adds the line to results/against.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.provenance import provenance
from led_sglang.cli import files
from led_sglang.cli.arguments import integer
from led_sglang.cli.endings import CommandError, guarded

HERE = Path(__file__).resolve().parent.parent
RESULTS = HERE / "benchmarks/results/against.jsonl"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--key", required=True, help="of the JSON document; of a list's objects: their median")
    parser.add_argument("--pairs", type=integer(1), default=5)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("command", nargs="+", help="-- script of both checkouts, and its arguments")
    return parser.parse_args()


def value_of(document: Any, key: str) -> float:
    """Raises CommandError where the benchmark has no such number."""
    objects = document if isinstance(document, list) else [document]
    try:
        return float(statistics.median(found[key] for found in objects))
    except (KeyError, TypeError, statistics.StatisticsError) as error:
        raise CommandError(f"the benchmark's document has no number {key!r}") from error


def run(checkout: Path, command: list[str]) -> Any:
    """The last line of a run, parsed. Raises CommandError for a run that failed."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandError(f"{checkout}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def command() -> None:
    options = parse_arguments()
    if options.append:
        files.check_file(RESULTS)
    sides = {"here": HERE, "other": options.other.resolve()}
    values: dict[str, list[float]] = {"here": [], "other": []}
    for i in range(options.pairs + 1):  # the first pair warms caches and does not count
        for side in ("here", "other") if i % 2 else ("other", "here"):
            found = value_of(run(sides[side], options.command), options.key)
            if i:
                values[side].append(found)
    ratios = sorted(here / other for here, other in zip(values["here"], values["other"], strict=True))
    line = {
        "command": options.command,
        "key": options.key,
        "other_commit": commit_of(sides["other"]),
        "pairs": options.pairs,
        "here": round(statistics.median(values["here"]), 4),
        "other": round(statistics.median(values["other"]), 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
    }
    if options.append:
        files.append_line(RESULTS, json.dumps({**provenance(), **line}))
    print(json.dumps(line))


if __name__ == "__main__":
    sys.exit(guarded("against", command))
