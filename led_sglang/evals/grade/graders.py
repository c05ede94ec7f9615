"""Right, wrong or no answer: numbers, mathematics (math-verify) and multiple choice. Code is in `code_grader`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from led_sglang.evals.answers.choices import find_choice, to_letter
from led_sglang.evals.answers.mathematics import is_same, parse
from led_sglang.evals.answers.numbers import find_number, to_number
from led_sglang.evals.answers.text import last_boxed

__all__ = [
    "FAULTS",
    "GRADERS",
    "JUDGE_ERROR",
    "JUDGE_TIMEOUT",
    "NO_ANSWER",
    "OUTCOMES",
    "REFUSED",
    "RIGHT",
    "TIMED_OUT",
    "WRONG",
    "Verdict",
    "grade_choice",
    "grade_math",
    "grade_number",
]

EMPHASIS = re.compile(r"(?<![\w)}])\*\*([^*\n]+)\*\*")  # Markdown's, not Python's power

RIGHT, WRONG, NO_ANSWER = "right", "wrong", "no_answer"
JUDGE_TIMEOUT, JUDGE_ERROR = "judge_timeout", "judge_error"
REFUSED, TIMED_OUT = "refused", "timed_out"
OUTCOMES = (RIGHT, WRONG, NO_ANSWER, JUDGE_TIMEOUT, JUDGE_ERROR, REFUSED, TIMED_OUT)
FAULTS = (JUDGE_TIMEOUT, JUDGE_ERROR, REFUSED, TIMED_OUT)  # neither the model's answer nor the lack of one
MAX_ANSWER_CHARS = 2000  # a longer "answer" is text that was never meant as one, and costs the judge minutes


@dataclass(frozen=True)
class Verdict:
    outcome: str
    answer: str | None = None
    detail: str = ""


def _decide(is_right: bool, answer: str, detail: str = "") -> Verdict:
    return Verdict(RIGHT if is_right else WRONG, answer[:MAX_ANSWER_CHARS], detail)


def grade_number(text: str, gold: str) -> Verdict:
    """What `find_number` finds, against the gold number, by value."""
    expected = to_number(gold)
    if expected is None:
        raise ValueError(f"the gold answer {gold!r} is not a number")
    found = find_number(text)
    return Verdict(NO_ANSWER) if found is None else _decide(expected in found.values, found.text)


def grade_countdown(text: str, gold: str) -> Verdict:
    """The last expression in the text must use each of the gold's numbers once and have its target's value."""
    from led_sglang.embedded.countdown import is_solution, last_expression

    expected, found = json.loads(gold), last_expression(text)
    if found is None:
        return Verdict(NO_ANSWER)
    return _decide(is_solution(found, tuple(expected["numbers"]), expected["target"]), found)


def grade_choice(text: str, gold: str) -> Verdict:
    """The one letter that `find_choice` finds; two letters are wrong."""
    chosen = find_choice(text)
    return Verdict(NO_ANSWER) if chosen is None else _decide(chosen.letters == (to_letter(gold),), str(chosen))


def grade_math(text: str, gold: str) -> Verdict:
    r"""\boxed{...}, or what math-verify finds in the text, against the gold answer."""
    boxed = last_boxed(text)
    if boxed is None:
        found = parse(EMPHASIS.sub(r"\1", text[-4 * MAX_ANSWER_CHARS :]))
        return _decide(is_same(str(found[-1]), gold), str(found[-1])) if found else Verdict(NO_ANSWER)
    if len(boxed) > MAX_ANSWER_CHARS:
        return _decide(False, boxed, "too long to be an answer")
    return _decide(is_same(boxed, gold), boxed)


GRADERS: dict[str, Callable[[str, str], Verdict]] = {
    "number": grade_number,
    "countdown": grade_countdown,
    "math": grade_math,
    "choice": grade_choice,
}
