"""Seeded arithmetic problems in two disjoint splits, and the grader.

    python -m led_sglang.embedded.problems --count 5

prints examples.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from led_sglang.cli.arguments import integer
from led_sglang.cli.endings import guarded
from led_sglang.embedded import expressions
from led_sglang.embedded.solutions import write_answer, write_thinking

__all__ = ["PHRASINGS", "Problem", "Split", "generate", "grade", "main", "split_of", "stream"]

Split = Literal["train", "held_out"]

PHRASINGS = (
    "What is {}?",
    "Compute {}.",
    "Calculate {}.",
    "How much is {}?",
    "Please work out {}.",
    "Find the value of {}.",
    "{} = ?",
    "Solve {}.",
)
NUM_OPERANDS = (2, 3, 3, 4)  # drawn uniformly, so three operands are as common as two and four together
HELD_OUT_SHARE = 8  # one problem in eight is never trained on


@dataclass(frozen=True)
class Problem:
    """A question, its right answer, and one of the many ways to think it through."""

    expression: str
    question: str
    answer: int
    thinking: str
    answer_text: str


def split_of(key: str) -> Split:
    """The split is a function of a problem's key (here the expression) alone: no seed can put one problem in both."""
    digest = hashlib.sha256(key.encode()).digest()
    return "held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """Endless problems of one split, the same for the same seed; expressions may come again in other words."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, not {split!r}")
    rng = random.Random(f"{split}-{seed}")
    while True:
        expression = expressions.draw(rng, rng.choice(NUM_OPERANDS))
        if split_of(expressions.show(expression)) == split:
            yield _make(expression, rng)


def _make(expression: expressions.Expression, rng: random.Random) -> Problem:
    shown, answer = expressions.show(expression), expressions.value(expression)
    return Problem(
        expression=shown,
        question=rng.choice(PHRASINGS).format(shown),
        answer=answer,
        thinking=write_thinking(expression, rng),
        answer_text=write_answer(shown, answer, rng),
    )


def generate(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` problems of the split, no expression twice."""
    by_expression: dict[str, Problem] = {}
    source = stream(split, seed)
    while len(by_expression) < count:
        problem = next(source)
        by_expression.setdefault(problem.expression, problem)
    return list(by_expression.values())


def grade(answer_text: str, problem: Problem) -> bool:
    """Whether the last whole number after the thinking (if any is in the text) is the answer."""
    numbers = re.findall(r"-?\d+", answer_text.rpartition("</think>")[2])
    return bool(numbers) and int(numbers[-1]) == problem.answer


def command(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description="print example problems")
    parser.add_argument("--count", type=integer(0), default=5)
    parser.add_argument("--split", choices=get_args(Split), default="held_out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for problem in generate(args.split, args.count, args.seed):
        print(f"{problem.question}\n<think>\n{problem.thinking}\n</think>\n\n{problem.answer_text}\n")


def main(argv: list[str] | None = None) -> int:
    return guarded("problems", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
