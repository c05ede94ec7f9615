"""The paper's experiment on a running server, and its tables and figures.

python -m led_sglang.evals run --task embedded --methods cot,led,led:depth=4 --samples 16 --out out/run
python -m led_sglang.evals report out/run --out docs/results/embedded
python -m led_sglang.evals grade --task gsm8k answers.jsonl
python -m led_sglang.evals reproduce --task countdown '--serve=--page-size 32' --runs out/all --out docs/results/all

Exit status: 0 if everything asked for was done (`run`: every request answered), else 1 with the reason; 2 for bad
arguments, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from led_sglang.cli.arguments import api_key, integer, number, text, url
from led_sglang.cli.endings import guarded, write_stderr
from led_sglang.evals.methods import parse_methods
from led_sglang.evals.prompts import STYLES
from led_sglang.evals.regrade import add_grade_parser, grade_file
from led_sglang.evals.reproduce import (
    add_reproduce_parser,
    evaluated_server,
    prepare,
    report_arguments,
    stage_arguments,
)
from led_sglang.evals.tasks import TASKS, find_tasks, load

__all__ = ["main"]

POSITIVE = number(0, includes_low=False)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m led_sglang.evals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask, grade and store")
    run.add_argument("--task", type=text, required=True, help=f"comma-separated: {', '.join(TASKS)}")
    run.add_argument(
        "--methods", type=text, default="cot,led", help="comma-separated: cot, led, led:depth=4,top_k=3, dola, ..."
    )
    run.add_argument("--samples", type=integer(1), default=16, help="of each question")
    run.add_argument("--temperature", type=_temperatures, default="0.6", help="one or several, comma-separated")
    run.add_argument("--base-url", type=url, default="http://127.0.0.1:30000/v1")
    run.add_argument("--api-key", type=api_key, help="where the server was started with one")
    run.add_argument("--model", type=text, help="served model's name; default: the first the server lists")
    run.add_argument("--out", type=Path, required=True, help="folder of the run")
    run.add_argument("--data", type=Path, help="folder with <task>.jsonl; default: the hub")
    run.add_argument("--prompts", choices=STYLES, default="ours", help="ours, or as in the released evaluation")
    run.add_argument("--limit", type=integer(1), help="questions of each task; default: all (embedded: 500)")
    run.add_argument("--seed", type=integer(0), default=0, help="of embedded problems and of the sampling")
    run.add_argument("--concurrency", type=integer(1), default=32, help="requests at a time")
    run.add_argument(
        "--timeout-s", type=POSITIVE, default=3600, help="of one answer; a later one is counted as timed out"
    )
    run.add_argument("--judge-timeout-s", type=POSITIVE, default=20, help="of one mathematical verdict")
    run.add_argument("--judges", type=integer(1), default=2, help="judge processes, and programs run at a time")
    run.add_argument("--max-tokens", type=integer(1), help="default: the task's")
    run.add_argument("--top-p", type=number(0, 1, includes_low=False), help="default: the task's")
    run.add_argument("--top-k", type=integer(-1), help="-1: all tokens; default: the task's")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--no-text", action="store_true", help="do not keep the answers' texts")
    run.add_argument("--quiet", action="store_true")
    add_reproduce_parser(commands)
    add_grade_parser(commands)
    small = commands.add_parser("compact", help="counts in place of samples: small enough for a repository")
    small.add_argument("runs", type=Path, nargs="+", help="folders of `run`; reported on and continued as before")
    report = commands.add_parser("report", help="tables, figures and a page from finished runs")
    report.add_argument("runs", type=Path, nargs="+", help="folders that `run` wrote; several are put together")
    report.add_argument("--out", type=Path, required=True, help="folder for report.md, report.html and figures/")
    report.add_argument("--baseline", type=text, help="the method that all others are compared with (default: cot)")
    report.add_argument("--reference", type=text, help="the method that its ablations are compared with (default: led)")
    report.add_argument("--analysis", type=Path, action="append", default=[], help="JSON from led_sglang.analysis")
    report.add_argument("--seed", type=integer(0), default=0, help="of the bootstrap")
    report.add_argument("--resamples", type=integer(1), default=10_000)
    report.add_argument("--title", default="Latent Exploration Decoding: results")
    return parser


def _temperatures(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(map(number(0, 100), text.split(","))))


def run_command(args: argparse.Namespace) -> int:
    from led_sglang.evals.run.runner import Runner, Settings

    settings = Settings(
        tasks=tuple(find_tasks(args.task)),
        methods=tuple(parse_methods(args.methods)),
        temperatures=args.temperature,
        samples=args.samples,
        out=args.out,
        base_url=args.base_url,
        api_key=args.api_key,
        model=args.model,
        seed=args.seed,
        concurrency=args.concurrency,
        timeout_s=args.timeout_s,
        judge_timeout_s=args.judge_timeout_s,
        judges=args.judges,
        max_tokens=args.max_tokens,
        top_p=args.top_p,
        top_k=args.top_k,
        resume=args.resume,
        keep_text=not args.no_text,
        is_quiet=args.quiet,
        prompts=args.prompts,
    )
    questions = {task.name: load(task, args.data, args.limit, args.seed, args.prompts) for task in settings.tasks}
    message, is_done = asyncio.run(Runner(settings, questions).run())
    if message:
        write_stderr(f"evals: {message}")
    return 0 if is_done else 1


def report_command(args: argparse.Namespace) -> int:
    from led_sglang.evals.report.compose import write_report

    for path in write_report(args):
        print(path)
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    """Every stage as one `run`, then one `report`, which requests without an answer do not prevent."""
    parser, status = make_parser(), 0
    prepare(args)
    with evaluated_server(args.serve, args.runs, args.base_url) as base_url:
        for name in args.stages:
            write_stderr(f"evals: stage {name}")
            status |= run_command(parser.parse_args(stage_arguments(name, args, base_url)))
    return status | report_command(parser.parse_args(report_arguments(args)))


def compact_command(args: argparse.Namespace) -> int:
    from led_sglang.evals.records.results import compact

    for folder in args.runs:
        compact(folder)
        print(folder)
    return 0


COMMANDS = {
    "compact": compact_command,
    "grade": grade_file,
    "run": run_command,
    "report": report_command,
    "reproduce": reproduce_command,
}


def main(argv: list[str] | None = None) -> int:
    requested: list[argparse.Namespace] = []

    def work() -> int:
        requested.append(make_parser().parse_args(argv))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a scheduler is stopped like by Ctrl-C
        return COMMANDS[requested[0].command](requested[0])

    return guarded("evals", work, kept=lambda message: _kept(requested[0]) if _is_kept(requested, message) else "")


def _is_kept(requested: list[argparse.Namespace], message: str) -> bool:
    """Whether there are samples to go on from, and the message does not speak of that itself."""
    if not requested or requested[0].command in ("report", "compact", "grade") or "--resume" in message:
        return False
    args = requested[0]
    folders = [args.out] if args.command == "run" else [args.runs / name for name in args.stages]
    paths = [folder / "samples.jsonl" for folder in folders]
    return any(path.is_file() and path.stat().st_size > 0 for path in paths)


def _kept(args: argparse.Namespace) -> str:
    """The message for a run that ended early: what is kept and how it goes on."""
    if args.command == "reproduce":
        return f"finished samples are kept in {args.runs}; the same command goes on"
    return f"finished samples are kept; go on with --resume --out {args.out}"


if __name__ == "__main__":
    sys.exit(main())
