"""Seeded countdown problems in two disjoint splits, and the checker: reach a target from given numbers with + - *.

    python -m led_sglang.embedded.countdown --count 5

prints examples. Every number is used exactly once; most targets can be reached in several ways, and any is right.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from led_sglang.cli.arguments import integer
from led_sglang.cli.endings import guarded
from led_sglang.embedded import expressions, search
from led_sglang.embedded.problems import Split, split_of

__all__ = ["PHRASINGS", "Countdown", "generate", "grade", "is_solution", "key_of", "last_expression", "main", "stream"]

PHRASINGS = (
    "Make {target} from {numbers}.",
    "Use {numbers} to get {target}.",
    "Reach {target} with {numbers}.",
    "How can {numbers} make {target}?",
    "Combine {numbers} into {target}.",
    "Get {target} out of {numbers}.",
    "Which way do {numbers} give {target}?",
    "Find {target} using {numbers}.",
)
NUM_NUMBERS = (3, 4)  # drawn uniformly
MIN_TARGET = 10  # small targets are reached in too many ways
MAX_LUCK = 0.1  # a problem on which random steps succeed more often than this is left out: searching must pay
MAX_EXPRESSION_CHARACTERS = 200


@dataclass(frozen=True)
class Countdown:
    """The numbers, the target, and one of the many searches that find it."""

    numbers: tuple[int, ...]
    target: int
    question: str
    thinking: str
    answer_text: str

    @property
    def key(self) -> str:
        return key_of(self.numbers, self.target)


def key_of(numbers: tuple[int, ...], target: int) -> str:
    """What the split depends on: numbers and target alone, whatever their order, the words or the seed."""
    return f"{sorted(numbers)} -> {target}"


def stream(split: Split, seed: int) -> Iterator[Countdown]:
    """Endless problems of one split, the same for the same seed; the same numbers and target may come again."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, not {split!r}")
    rng = random.Random(f"countdown-{split}-{seed}")
    while True:
        tree = expressions.draw(rng, rng.choice(NUM_NUMBERS))
        numbers, target = tuple(_leaves(tree)), expressions.value(tree)
        if target < MIN_TARGET or split_of(key_of(numbers, target)) != split:
            continue
        # No luck at all is possible: the tree drawn may use a zero on its way, which no search does.
        if 0 < search.luck(tuple(sorted(numbers)), target) <= MAX_LUCK:
            yield _make(numbers, target, rng)


def _leaves(tree: expressions.Expression) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        yield from _leaves(tree.left)
        yield from _leaves(tree.right)


def _make(numbers: tuple[int, ...], target: int, rng: random.Random) -> Countdown:
    thinking, found = search.write(numbers, target, rng)
    shown = ", ".join(map(str, rng.sample(numbers, len(numbers))))
    question = rng.choice(PHRASINGS).format(target=target, numbers=shown)
    return Countdown(numbers, target, question, thinking, rng.choice(search.ANSWERS).format(found))


def generate(split: Split, count: int, seed: int) -> list[Countdown]:
    """`count` problems of the split, no numbers and target twice."""
    by_key: dict[str, Countdown] = {}
    source = stream(split, seed)
    while len(by_key) < count:
        problem = next(source)
        by_key.setdefault(problem.key, problem)
    return list(by_key.values())


def grade(answer_text: str, problem: Countdown) -> bool:
    """Whether the last expression after the thinking (if any is in the text) is a solution."""
    found = last_expression(answer_text.rpartition("</think>")[2])
    return found is not None and is_solution(found, problem.numbers, problem.target)


def last_expression(text: str) -> str | None:
    """The last run of digits, signs and brackets with an operation in it: of "24 = 3 * 8." it is "3 * 8"."""
    runs = re.findall(r"[\d(][\d\s()+*-]*", text)
    found = [run.strip() for run in runs if re.search(r"\d[\s)]*[-+*][\s(]*\d", run)]
    return found[-1] if found else None


def is_solution(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Whether it uses each of the numbers once and nothing else, and has the target's value."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS:  # never meant as an answer; deep brackets cost Python its stack
        return False
    try:
        tree = ast.parse(expression, mode="eval").body
        return _value(tree) == target and Counter(_constants(tree)) == Counter(numbers)
    except (SyntaxError, ValueError):
        return False


def _value(tree: ast.expr) -> int:
    """Raises ValueError on anything but whole numbers and + - *."""
    names = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.BinOp) and type(tree.op) in names:
        return expressions.OPERATIONS[names[type(tree.op)]](_value(tree.left), _value(tree.right))
    raise ValueError(f"not a sum, difference or product of numbers: {ast.unparse(tree)}")


def _constants(tree: ast.expr) -> list[int]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)]


def command(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description="print example problems")
    parser.add_argument("--count", type=integer(0), default=5)
    parser.add_argument("--split", choices=get_args(Split), default="held_out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", action="store_true", help="print the questions alone, one a line")
    args = parser.parse_args(argv)
    for problem in generate(args.split, args.count, args.seed):
        worked = f"\n<think>\n{problem.thinking}\n</think>\n\n{problem.answer_text}\n"
        print(problem.question + ("" if args.questions else worked))


def main(argv: list[str] | None = None) -> int:
    return guarded("countdown", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
