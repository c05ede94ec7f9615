"""`grade`: verdicts on answers from a file, one JSON line each.

A line of the file is an object with `text`, what the model wrote, and `expected`, the right answer: a number, an
expression, a letter, the tests of a program (`{"input", "output", "function"?}`, or a list of them), or a countdown
(`{"numbers", "target"}`). Of a run's own samples `reasoning` and `finish` count too, if they are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number, text
from led_sglang.cli.endings import write_stderr
from led_sglang.evals import readers
from led_sglang.evals.answers.choices import LETTERS, to_letter
from led_sglang.evals.answers.text import final_text
from led_sglang.evals.errors import EvalError
from led_sglang.evals.grade.dispatch import Marking, check_installed
from led_sglang.evals.grade.graders import RIGHT, Verdict
from led_sglang.evals.grade.judge import Judges
from led_sglang.evals.tasks import TASKS, find_tasks

__all__ = ["add_grade_parser", "grade_file"]


@dataclass(frozen=True)
class _Answer:
    text: str  # what follows the thinking
    gold: str


def add_grade_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "grade", help="grade answers from a file", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--task", type=text, required=True, help=f"whose grader: {', '.join(TASKS)}")
    parser.add_argument("file", type=Path, help='JSON lines: {"text": ..., "expected": ...}')
    parser.add_argument(
        "--judge-timeout-s", type=number(0, includes_low=False), default=20, help="of one mathematical verdict"
    )
    parser.add_argument("--judges", type=integer(1), default=2, help="judge processes, and programs run at a time")


def grade_file(args: argparse.Namespace) -> int:
    """Prints a line for every answer, in their order. Raises CommandError before the first for a line that is none."""
    tasks = find_tasks(args.task)
    if len(tasks) != 1:
        raise EvalError(f"--task: grade takes one task, not {len(tasks)}")
    check_installed({tasks[0].grader})
    answers = list(_answers(args.file, tasks[0].grader))
    counts = asyncio.run(_grade(answers, tasks[0].grader, args))
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    write_stderr(f"evals: {len(answers)} answers: {shown or 'none'}")
    return 0


async def _grade(answers: list[_Answer], grader: str, args: argparse.Namespace) -> Counter[str]:
    counts: Counter[str] = Counter()
    async with Judges(args.judges, args.judge_timeout_s) as judges:
        marking = Marking(judges, args.judges)
        pending = [asyncio.create_task(marking.grade(grader, answer.text, answer.gold)) for answer in answers]
        for task in pending:
            verdict = await task
            counts[verdict.outcome] += 1
            print(_line(verdict), flush=True)
    return counts


def _line(verdict: Verdict) -> str:
    detail = {"detail": verdict.detail} if verdict.detail and verdict.outcome != RIGHT else {}
    return json.dumps({"outcome": verdict.outcome, "answer": verdict.answer, **detail})


def _answers(path: Path, grader: str) -> Iterator[_Answer]:
    """Raises CommandError."""
    for where, row in files.json_lines(path):
        try:
            content = _text(row, "text")
            finish = None if row.get("finish") is None else _text(row, "finish")
            reasoning = "" if row.get("reasoning") is None else _text(row, "reasoning")
            if row.get("expected") is None:
                raise readers.UnusableRow("no expected: the right answer")
            gold = _gold(grader, row["expected"])
        except readers.UnusableRow as error:
            raise EvalError(f"{where}: {error}") from error
        yield _Answer(final_text(content, reasoning, finish, "auto"), gold)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise readers.UnusableRow(f"{key} must be a text, not {files.kind_of(value) if key in row else 'missing'}")
    return value


def _gold(grader: str, expected: Any) -> str:
    """As `Question.gold` is; raises UnusableRow where no answer could be right."""
    if grader == "choice":
        letter = to_letter(str(expected))
        if letter not in list(LETTERS):
            raise readers.UnusableRow(f"expected must be a letter of {LETTERS}, not {str(expected)[:80]!r}")
        return letter
    row: dict[str, Any] = {"problem": "as graded", "expected_answer": expected}
    if grader in ("code", "countdown"):
        row |= _parsed(grader, expected)
    return readers.SHAPES[grader](row)[1]


def _parsed(grader: str, expected: Any) -> dict[str, Any]:
    """Tests or a countdown, as JSON or as a text of it."""
    if isinstance(expected, str):
        try:
            expected = json.loads(expected)
        except (ValueError, RecursionError) as error:
            raise readers.UnusableRow(f"expected is not JSON: {expected[:80]!r}") from error
    if grader == "code":
        return {"tests": [expected] if isinstance(expected, dict) else expected}
    if not isinstance(expected, dict):
        raise readers.UnusableRow(f'expected must be {{"numbers", "target"}}, not {files.kind_of(expected)}')
    return expected
