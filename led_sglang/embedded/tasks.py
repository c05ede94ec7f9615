"""The tasks of the embedded models behind one interface, for training and evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from led_sglang.embedded import countdown, problems
from led_sglang.embedded.problems import Split

__all__ = ["TASK_NAMES", "Problem", "generate", "grade", "mixed"]

TASK_NAMES = ("arithmetic", "countdown")

Problem = problems.Problem | countdown.Countdown


def generate(task: str, split: Split, count: int, seed: int) -> Sequence[Problem]:
    """`count` different problems. Raises ValueError for a task or split that does not exist."""
    if task not in TASK_NAMES:
        raise ValueError(f"task must be one of {TASK_NAMES}, not {task!r}")
    if task == "arithmetic":
        return problems.generate(split, count, seed)
    return countdown.generate(split, count, seed)


def mixed(split: Split, seed: int, arithmetic_share: float) -> Iterator[Problem]:
    """Endless problems of both tasks."""
    rng = random.Random(f"mixed-{seed}")
    arithmetic, countdowns = problems.stream(split, seed), countdown.stream(split, seed)
    while True:
        yield next(arithmetic) if rng.random() < arithmetic_share else next(countdowns)


def grade(answer_text: str, problem: Problem) -> bool:
    """Whether what follows the thinking (if any is in the text) is a right answer."""
    if isinstance(problem, countdown.Countdown):
        return countdown.grade(answer_text, problem)
    return problems.grade(answer_text, problem)
