"""One answer graded, by whoever can hold it: in this process, in a judge process, or in sandbox runs."""

from __future__ import annotations

import asyncio
import importlib.util
import json

from led_sglang.evals.errors import EvalError
from led_sglang.evals.grade import code_grader
from led_sglang.evals.grade.graders import GRADERS, JUDGE_ERROR, Verdict
from led_sglang.evals.grade.judge import Judges

__all__ = ["Marking", "check_installed"]

INLINE_GRADERS = ("number", "countdown", "choice")  # less than a millisecond; the others get processes


def check_installed(graders: set[str]) -> None:
    """Raises EvalError where a grader's package is missing."""
    if "math" in graders and importlib.util.find_spec("math_verify") is None:
        raise EvalError("mathematics is judged by math-verify, which is missing: pip install 'led_sglang[evals]'")


class Marking:
    """`judges` processes of mathematics, and as many programs at a time."""

    def __init__(self, judges: Judges, count: int) -> None:
        self._judges = judges
        self._code_slots = asyncio.Semaphore(count)

    async def grade(self, grader: str, text: str, gold: str) -> Verdict:
        """`text`: what follows the thinking; `gold`: `Question.gold`."""
        if grader in INLINE_GRADERS:
            try:
                return GRADERS[grader](text, gold)
            except Exception as error:  # as in a judge process: whatever a model's text does to a grader is an outcome
                return Verdict(JUDGE_ERROR, detail=f"{type(error).__name__}: {error}"[:300])
        if grader == "code":
            tests = code_grader.to_tests(json.loads(gold))
            async with self._code_slots:
                return await asyncio.to_thread(code_grader.grade_code, text, tests)
        return await self._judges.grade(grader, text, gold)
