"""A server under mixed load, aborts, retractions and bad requests, then an audit; the last line is JSON.

python -m benchmarks.soak --minutes 10
python -m benchmarks.soak --requests 20000 --minutes 60 --append
python -m benchmarks.soak --led-alone --server-args "--speculative-algorithm NGRAM"
"""

import argparse
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.provenance import provenance
from benchmarks.soak.plan import OTHER_METHODS
from benchmarks.soak.run import ARGUMENTS, ENVIRONMENT, Bounds, soak
from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.serving.child import Server

RESULTS = Path(__file__).parent.parent / "results" / "soak.jsonl"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=number(0, includes_low=False),
        default=10.0,
        help="the longest it may load the server (default: 10)",
    )
    parser.add_argument(
        "--requests", type=integer(1), default=None, help="end after so many; fewer in time is a failure"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the requests (default: 1)")
    parser.add_argument("--log", type=Path, default=None, help="keep the server's log in this file")
    parser.add_argument("--append", action="store_true", help=f"append the summary to {RESULTS.name} under results/")
    parser.add_argument("--server-args", default="", help="more arguments for the server")
    parser.add_argument("--led-alone", action="store_true", help="without the other methods, as speculation needs it")
    return parser.parse_args()


def command() -> int:
    options = parse_arguments()
    for path in (RESULTS if options.append else None, options.log):
        if path is not None:
            files.check_file(path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server goes with it
    methods = () if options.led_alone else OTHER_METHODS
    bounds = Bounds(options.minutes, options.requests, seed=options.seed, methods=methods)
    arguments = (*ARGUMENTS, "--led-methods", ",".join(("led", *methods)), *options.server_args.split())
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "server.log"
        with Server(*arguments, log=log, environment=ENVIRONMENT) as server:
            found = soak(server, bounds)
    for fault in found["faults"]:
        print(f"soak: {fault:.600}", file=sys.stderr)
    line = json.dumps({**provenance(), **asdict(bounds), "server_args": options.server_args, **found})
    if options.append:
        files.append_line(RESULTS, line)
    print(line)
    return 1 if found["num_faults"] else 0


if __name__ == "__main__":
    sys.exit(guarded("soak", command))
