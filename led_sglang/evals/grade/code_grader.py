"""Right or wrong for programs: every test of the question has to pass, each in a sandbox run of its own."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from led_sglang.evals.answers.programs import find_program
from led_sglang.evals.grade import sandbox
from led_sglang.evals.grade.graders import JUDGE_TIMEOUT, NO_ANSWER, RIGHT, WRONG, Verdict

__all__ = ["CodeTest", "grade_code", "same_output", "to_tests"]

MAX_QUESTION_S = 180.0  # for all tests of one program

PRELUDE = """\
import sys
sys.setrecursionlimit(50000)
from typing import *
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
from math import *
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
"""
# The result leaves through a copy of stdout, so that the program's own printing cannot spoil it.
CALL = """
import json as _json, os as _os
_out = _os.fdopen(_os.dup(1), "w")
_os.dup2(2, 1)
_arguments = [_json.loads(_line) for _line in sys.stdin.read().split("\\n") if _line.strip()]
_called = Solution().{name} if "Solution" in globals() else {name}
_out.write(_json.dumps(_called(*_arguments)))
_out.close()
"""


FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


@dataclass(frozen=True)
class CodeTest:
    stdin: str
    expected: str
    function: str = ""  # empty: a whole program that reads stdin; else called with one JSON argument a line
    setup: str = ""  # comes before the program: what the question gave it
    check: str = ""  # code that defines check(candidate), which is called with the function and must not raise


def _same_token(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def same_output(printed: str, expected: str) -> bool:
    """Line by line and word by word; numbers by value."""
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (printed, expected))
    return [len(line) for line in ours] == [len(line) for line in theirs] and all(
        _same_token(a, b) for mine, gold in zip(ours, theirs, strict=True) for a, b in zip(mine, gold, strict=True)
    )


def same_value(printed: str, expected: str) -> bool:
    try:
        mine, gold = json.loads(printed), json.loads(expected)
    except json.JSONDecodeError:
        return False
    return bool(mine == gold)


def _with_prelude(source: str) -> str:
    """What the language demands at the top of a file stays there."""
    futures = FUTURE.findall(source)
    return "".join(f"{line}\n" for line in futures) + PRELUDE + FUTURE.sub("", source)


def run_test(source: str, test: CodeTest, limits: sandbox.Limits | None = None) -> tuple[bool, sandbox.Run]:
    compare: Callable[[str, str], bool] = same_value if test.function else same_output
    if test.check:
        return _run_check(source, test, limits)
    program = _with_prelude(source) + (CALL.format(name=test.function) if test.function else "")
    result = sandbox.run(program, test.stdin, limits)
    return result.status == sandbox.OK and compare(result.stdout, test.expected), result


def _run_check(source: str, test: CodeTest, limits: sandbox.Limits | None) -> tuple[bool, sandbox.Run]:
    """The last line is printed behind the check, and cannot be guessed: a program that ends early has not passed."""
    passed = secrets.token_hex(16)
    lines = test.setup, source, test.check, f"check({test.function})", f"print('{passed}')", ""
    program = _with_prelude("\n".join(lines))
    result = sandbox.run(program, "", limits)
    return result.status == sandbox.OK and result.stdout.rstrip("\n").endswith(passed), result


def grade_code(text: str, tests: list[CodeTest], limits: sandbox.Limits | None = None) -> Verdict:
    """`answer`: the program; `detail`: how the first failing test ended, wrong_output or a status of the sandbox."""
    source = find_program(text, frozenset(test.function for test in tests if test.function))
    if source is None:
        return Verdict(NO_ANSWER)
    return replace(_judge(source, tests, limits), answer=source)


def _judge(source: str, tests: list[CodeTest], limits: sandbox.Limits | None) -> Verdict:
    deadline = time.monotonic() + MAX_QUESTION_S
    for index, test in enumerate(tests):
        if time.monotonic() > deadline:
            return Verdict(
                JUDGE_TIMEOUT, detail=f"tests took over {MAX_QUESTION_S:g} s, {index} of {len(tests)} passed"
            )
        passed, result = run_test(source, test, limits)
        if not passed:
            reason = "wrong_output" if result.status == sandbox.OK else result.status
            return Verdict(WRONG, detail=f"{reason} in test {index + 1} of {len(tests)}")
    return Verdict(RIGHT, detail=f"{len(tests)} tests")


def to_tests(wire: list[dict[str, Any]]) -> list[CodeTest]:
    """Of JSON objects; what one leaves out is empty."""
    keys = ("input", "output", "function", "setup", "check")
    return [CodeTest(*("" if test.get(key) is None else str(test[key]) for key in keys)) for test in wire]
