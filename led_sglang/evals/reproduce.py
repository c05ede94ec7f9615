"""All of the paper's tables and figures in one go: which runs they need, and a server for them if wanted."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from led_sglang.cli import files
from led_sglang.cli.arguments import api_key, integer, text, url
from led_sglang.config.fields import ALL_METHODS
from led_sglang.evals.errors import EvalError
from led_sglang.evals.prompts import STYLES
from led_sglang.evals.tasks import find_tasks, load
from led_sglang.serving.child import Server

__all__ = ["STAGES", "add_reproduce_parser", "evaluated_server", "prepare", "report_arguments", "stage_arguments"]

NUM_LAYERS = 12  # of the embedded models: the largest depth is 12, and the whole of the paper's sweep is below


@dataclass(frozen=True)
class Stage:
    """A run. `has_all_samples`: --samples a question, else --few."""

    methods: str
    temperatures: str = "0.6"
    has_all_samples: bool = False


STAGES = {
    "main": Stage("cot,led,led:min_p=0.05", has_all_samples=True),
    "temperatures": Stage("cot,led", "0.1,0.3,1.0"),
    "ablations": Stage(
        "led:latent_norm=true,led:normalize_layers=true,led:exploit=false,led:phase=all,led:latent_offset=1,led:top_k=3"
    ),
    "methods": Stage("dola,soft_thinking,soft_thinking_gumbel,confident"),
    "depths": Stage(",".join(f"led:depth={depth}" for depth in range(1, NUM_LAYERS))),
}


def add_reproduce_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("reproduce", help="the paper's tables and figures: every run, then the report")
    parser.add_argument("--task", type=text, default="countdown", help="comma-separated, as in run")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--samples", type=integer(1), default=16, help="of each question in the main stage")
    parser.add_argument("--few", type=integer(1), default=16, help="of each question in the other stages")
    parser.add_argument("--limit", type=integer(1), default=500, help="questions of each task")
    parser.add_argument("--data", type=Path, help="folder with <task>.jsonl; default: the hub")
    parser.add_argument("--prompts", choices=STYLES, default="ours", help="as in run")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--concurrency", type=integer(1), default=128, help="requests at a time")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; one that is there goes on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--analysis", type=Path, action="append", default=[], help="JSON from led_sglang.analysis")
    parser.add_argument("--api-key", type=api_key, help="of --base-url, where that was started with one")
    parser.add_argument("--title", default="Latent Exploration Decoding: results")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--base-url", type=url, default="http://127.0.0.1:30000/v1", help=f"a server with --led-methods {ALL_METHODS}"
    )
    where.add_argument(
        "--serve", metavar="ARGUMENTS", help="start one of its own: '' or, with =, more of its arguments"
    )


def prepare(args: argparse.Namespace) -> None:
    """What would end it after hours is found before it begins. Raises CommandError."""
    from led_sglang.evals.report.compose import read_analyses

    files.check_folder(args.runs)
    files.check_folder(args.out)
    read_analyses(args.analysis)
    for task in find_tasks(args.task):
        load(task, args.data, args.limit, args.seed, args.prompts)


@contextmanager
def evaluated_server(arguments: str | None, runs: Path, base_url: str) -> Iterator[str]:
    """The server's address; with `arguments`, of a server that runs inside the context. Raises EvalError."""
    if arguments is None:
        yield base_url
        return
    runs.mkdir(parents=True, exist_ok=True)
    # The depths stage needs all but one of the layers; another model's server would capture eight.
    able = ("--led-methods", ALL_METHODS, "--led-max-depth", str(NUM_LAYERS))
    try:
        more = shlex.split(arguments)
    except ValueError as error:
        raise EvalError(f"--serve {arguments!r}: {error}") from error
    server = Server(*able, *more, log=runs / "server.log")
    try:
        server.wait_ready()
    except RuntimeError as error:
        raise EvalError(f"the server of --serve {arguments!r} did not start: {error}") from error
    try:
        yield f"{server.url}/v1"
    finally:
        server.stop()


def stage_arguments(name: str, args: argparse.Namespace, base_url: str) -> list[str]:
    """The command line of `run` for a stage."""
    stage, out = STAGES[name], args.runs / name
    samples = args.samples if stage.has_all_samples else args.few
    words = ["run", "--task", args.task, "--methods", stage.methods, "--temperature", stage.temperatures]
    words += ["--samples", str(samples), "--limit", str(args.limit), "--seed", str(args.seed)]
    words += ["--concurrency", str(args.concurrency), "--base-url", base_url, "--out", str(out), "--no-text", "--quiet"]
    words += ["--prompts", args.prompts]
    words += ["--data", str(args.data)] if args.data else []
    words += ["--api-key", args.api_key] if args.api_key else []
    return [*words, "--resume"] if (out / "run.json").is_file() else words


def report_arguments(args: argparse.Namespace) -> list[str]:
    """The command line of `report` for all stages."""
    folders = [str(args.runs / name) for name in args.stages]
    analyses = [word for path in args.analysis for word in ("--analysis", str(path))]
    return ["report", *folders, "--out", str(args.out), "--seed", str(args.seed), "--title", args.title, *analyses]
