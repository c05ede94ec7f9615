"""The command: a line per model, form, ranks and batch size, and with --json one document in the last line."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import triton

from benchmarks.gpu.build import Hopper
from benchmarks.gpu.cost.models import MODELS, ROWS
from benchmarks.gpu.cost.plan import Scenario
from benchmarks.gpu.cost.price import line_of
from benchmarks.provenance import provenance

RESULT = Path(__file__).parents[2] / "results" / "gpu_cost.jsonl"

FORMS = ("coin_first", "one_pass")
NODES = 4


def scenarios(models: list[str], rows: list[int], ranks: list[int]) -> Iterator[Scenario]:
    """Both forms, plain and seeded; coin first, the head's copy in 8 bits and a draft tree under verification."""
    for name in models:
        for tp in ranks:
            for num_requests in rows:
                model = MODELS[name]
                for form in FORMS:
                    yield Scenario(model, num_requests, form, tp)
                    yield Scenario(model, num_requests, form, tp, is_seeded=True)
                yield Scenario(model, num_requests, "coin_first", tp, head_lse="fp8")
                yield Scenario(model, num_requests, "coin_first", tp, nodes=NODES)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--append", action="store_true", help=f"append the lines to benchmarks/results/{RESULT.name}")
    args = parser.parse_args(argv)
    triton.runtime.driver.set_active(Hopper())
    lines = []
    print(f"{'model':14} rows tp {'form':20} {'GPU us':>8} {'host us':>8} {'budget':>8} {'of step':>8}  largest")
    for scenario in scenarios(args.models, args.rows, args.tp):
        line = line_of(scenario)
        lines.append(line)
        largest = ", ".join(f"{name.removesuffix('_kernel')} {us:g}" for name, us in line["largest"])
        numbers = f"{line['gpu_us']:8.1f} {line['host_us']:8.1f} {line['budget_us']:8.1f} {line['share']:8.2%}"
        print(f"{line['model']:14} {line['rows']:4} {line['tp']:2} {line['form']:20} {numbers}  {largest}", flush=True)
    if args.append:
        source = {**provenance(), "device": "sm_90, counted", "triton": triton.__version__}
        with RESULT.open("a") as results:
            results.writelines(json.dumps(line | source) + "\n" for line in lines)
    if args.json:
        print(json.dumps(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
