"""All that a Hopper host has to tell, in one run: correctness, op timings with the crossover, tiles, a server's cost.

    python -m benchmarks.gpu.kit --append                  # all four parts, lines to benchmarks/results/gpu_*.jsonl
    python -m benchmarks.gpu.kit --parts correct ops tiles # without SGLang
    TRITON_INTERPRET=1 python -m benchmarks.gpu.kit --dry-run --parts correct ops tiles # on a CPU, tiny sizes

Needs no network: torch, triton and this repository for three parts, SGLang 0.5.17 or later for the server. A part
that fails is told at the end, and the exit status is 1. Read benchmarks/gpu/README.md first.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import correct, ops, server, tiles
from benchmarks.provenance import provenance
from led_sglang.cli import files

RESULTS = Path(__file__).parents[1] / "results"
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "correct": correct.run,
    "ops": ops.run,
    "tiles": tiles.run,
    "server": server.run,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on CPU: proves the script alone")
    parser.add_argument("--rows", type=int, nargs="+", help="batch sizes; default 1 to 256")
    parser.add_argument("--modes", nargs="+", choices=server.MODES, help="of the server; default all, dry: auto")
    parser.add_argument("--explore-rate", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each server measurement")
    parser.add_argument("--append", action="store_true", help="append the lines to benchmarks/results/gpu_<part>.jsonl")
    args = parser.parse_args(argv)
    args.device = torch.device("cpu" if args.dry_run else "cuda")
    args.rows = args.rows or ([1, 3] if args.dry_run else [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256])
    args.modes = args.modes or (["auto"] if args.dry_run else list(server.MODES))
    if args.dry_run:
        args.repeats, args.seconds = 1, 2.0
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no GPU here; --dry-run proves the script on a CPU")
    if args.dry_run and args.append:
        parser.error("--dry-run measures nothing: drop --append")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    source, failed = provenance(), []
    for part in args.parts:
        try:
            for line in PARTS[part](args):
                print(json.dumps({"part": part, **line}), flush=True)
                if args.append:
                    files.append_line(RESULTS / f"gpu_{part}.jsonl", json.dumps(line | source))
        except Exception as error:  # the other parts still tell what they can: a lease is short
            failed.append(f"{part}: {type(error).__name__}: {error}")
    for fault in failed:
        print(f"FAILED {fault}", file=sys.stderr)
    print("gpu kit: dry run ended" if args.dry_run else "gpu kit: ended")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
