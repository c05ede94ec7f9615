"""Right, wrong or no answer: numbers, mathematics (math-verify) and multiple choice. Code is in `code_grader`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from led_sglang.evals.grade.answers import last_boxed

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
    "bare_latex",
    "grade_choice",
    "grade_math",
    "grade_number",
    "to_number",
]

RIGHT, WRONG, NO_ANSWER = "right", "wrong", "no_answer"
JUDGE_TIMEOUT, JUDGE_ERROR = "judge_timeout", "judge_error"
REFUSED, TIMED_OUT = "refused", "timed_out"
OUTCOMES = (RIGHT, WRONG, NO_ANSWER, JUDGE_TIMEOUT, JUDGE_ERROR, REFUSED, TIMED_OUT)
FAULTS = (JUDGE_TIMEOUT, JUDGE_ERROR, REFUSED, TIMED_OUT)  # neither the model's answer nor the lack of one
MAX_ANSWER_CHARS = 2000  # a longer "answer" is text that was never meant as one, and costs the judge minutes

NUMBER = re.compile(r"(?<![\w.])[-−+]?\$?\s?\d[\d,]*(?:\.\d+)?|(?<![\w.])[-−]?\.\d+")


@dataclass(frozen=True)
class Verdict:
    outcome: str
    answer: str | None = None
    detail: str = ""


def _decide(is_right: bool, answer: str, detail: str = "") -> Verdict:
    return Verdict(RIGHT if is_right else WRONG, answer[:MAX_ANSWER_CHARS], detail)


def to_number(text: str) -> Decimal | None:
    digits = re.sub(r"[\s,$+]|\\[!,;$]", "", text.replace("−", "-")).removesuffix(".")
    try:
        return Decimal(digits)
    except InvalidOperation:
        return None


def grade_number(text: str, gold: str) -> Verdict:
    r"""The last number of \boxed{...} if there is one, else of the text, against the gold number."""
    expected = to_number(gold)
    if expected is None:
        raise ValueError(f"the gold answer {gold!r} is not a number")
    found = NUMBER.findall(last_boxed(text) or "") or NUMBER.findall(text)
    if not found:
        return Verdict(NO_ANSWER)
    return _decide(to_number(found[-1]) == expected, found[-1])


def grade_countdown(text: str, gold: str) -> Verdict:
    """The last expression in the text must use each of the gold's numbers once and have its target's value."""
    from led_sglang.embedded.countdown import is_solution, last_expression

    expected, found = json.loads(gold), last_expression(text)
    if found is None:
        return Verdict(NO_ANSWER)
    return _decide(is_solution(found, tuple(expected["numbers"]), expected["target"]), found)


def grade_choice(text: str, gold: str) -> Verdict:
    r"""The letter in \boxed{...}, after "answer", or the last one in brackets."""
    patterns = (r"(?i:answer)(?:\s+is)?\s*:?\s*[$*]*\(?([A-Z])\b", r"\(([A-Z])\)", r"^\W*([A-Z])\W*$")
    boxed = re.findall(r"\b([A-Z])\b", last_boxed(text) or "")
    for found in (boxed, *(re.findall(pattern, text, flags=re.MULTILINE) for pattern in patterns)):
        if found:
            return _decide(found[-1] == gold.strip("() "), found[-1])
    return Verdict(NO_ANSWER)


def grade_math(text: str, gold: str) -> Verdict:
    r"""\boxed{...} as written, or what math-verify finds in the text, against the gold answer.

    Runs without time limits of its own (math-verify's need the main thread): the judge process has one.
    """
    boxed = last_boxed(text)
    if boxed is not None and bare_latex(boxed) == bare_latex(gold):
        return _decide(True, boxed)
    if boxed is not None and len(boxed) > MAX_ANSWER_CHARS:
        return _decide(False, boxed, "too long to be an answer")
    found = _parse(f"\\boxed{{{boxed}}}" if boxed is not None else text[-4 * MAX_ANSWER_CHARS :])
    if not found:
        return Verdict(NO_ANSWER) if boxed is None else _decide(False, boxed, "not understood as mathematics")
    from math_verify import verify  # type: ignore[import-untyped,unused-ignore]

    is_right = bool(verify(_parse(f"\\boxed{{{gold}}}"), found, timeout_seconds=None))
    return _decide(is_right, boxed if boxed is not None else str(found[-1]))


def _parse(text: str) -> list[Any]:
    from math_verify import parse  # type: ignore[import-untyped,unused-ignore]

    return list(parse(text, parsing_timeout=None))


def bare_latex(text: str) -> str:
    """Spelling that carries no meaning taken out, so that words ("\\text{ Evelyn }") compare too."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = (
        re.sub(r"\\(?:left|right|displaystyle|[!,;:])", "", text)
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
    )
    text = text.replace("^\\circ", "").replace("^{\\circ}", "").replace("\\$", "").replace("\\ ", "")
    return re.sub(r"\s+", "", text).strip("$.").replace("°", "")


GRADERS: dict[str, Callable[[str, str], Verdict]] = {
    "number": grade_number,
    "countdown": grade_countdown,
    "math": grade_math,
    "choice": grade_choice,
}
