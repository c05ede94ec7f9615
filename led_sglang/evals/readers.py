"""Rows of the data sets as their authors publish them, or of local JSONL, to problem texts and gold answers."""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import pickle
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from led_sglang.cli import files
from led_sglang.cli.endings import CommandError, write_stderr
from led_sglang.evals.answers.choices import LETTERS, to_letter
from led_sglang.evals.answers.mathematics import bare_latex
from led_sglang.evals.answers.numbers import to_number
from led_sglang.evals.answers.text import braces_close
from led_sglang.evals.errors import EvalError

__all__ = ["SHAPES", "UnusableRow", "hub_rows", "is_in_window", "local_rows", "question_id"]

ID_KEYS = ("id", "unique_id", "ID", "Record ID", "question_id", "task_id")
WINDOW = ("2024-08-01", "2025-01-31")  # LiveCodeBench v5 as in the paper: 279 problems

# How a problem begins, and its published answer: AIME 2024 I, problem 8, where the inradius is 192/5.
ERRATA = {("Eight circles of radius $34$", "480"): "197"}

Shaped = tuple[dict[str, Any], str]  # (the slots of `prompts`, gold answer)


class UnusableRow(ValueError):
    """A row without a question or an answer."""


def local_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for each line. Raises CommandError for a missing file or a line that is no JSON object."""
    if not path.exists():
        raise EvalError(f"{path} is missing: --data DIR needs one <task>.jsonl for every task")
    return files.json_lines(path)


def hub_rows(name: str, split: str, subset: str | None, files: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        if files:
            from huggingface_hub import hf_hub_download

            for file in files:
                yield from local_rows(Path(hf_hub_download(name, file, repo_type="dataset")))
            return
        from datasets import load_dataset  # type: ignore[import-untyped]

        for index, row in enumerate(load_dataset(name, subset, split=split)):
            yield f"{name}[{split}][{index}]", dict(row)
    except CommandError:
        raise
    except Exception as error:  # the hub's clients raise a dozen kinds for "not reachable" and "not allowed"
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
        raise EvalError(f"cannot load {name} from the hub ({reason}); give local files with --data DIR") from error


def _first(row: dict[str, Any], *keys: str, what: str, kinds: tuple[type, ...] = (str,)) -> str:
    """The first that is not empty. Raises UnusableRow."""
    for key in keys:
        value = row.get(key)
        if value is None or not str(value).strip():
            continue
        is_kind = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_kind or (isinstance(value, float) and not math.isfinite(value)):
            legal = "a text" if kinds == (str,) else "a text or a number"
            raise UnusableRow(f"{key} must be {legal}, not {str(value)[:80]!r} ({files.kind_of(value)})")
        return str(value)
    raise UnusableRow(f"no {what} (looked for {', '.join(keys)})")


def question_id(row: dict[str, Any]) -> str | None:
    """None where the row has none. Raises UnusableRow."""
    if not any(row.get(key) not in (None, "") for key in ID_KEYS):
        return None
    return _first(row, *ID_KEYS, what="id", kinds=(str, int, float))


def _problem(row: dict[str, Any]) -> str:
    return _first(row, "problem", "question", "Question", "question_content", what="question")


def _answer(row: dict[str, Any]) -> str:
    return _first(row, "expected_answer", "answer", "Answer", what="answer", kinds=(str, int, float))


def number_row(row: dict[str, Any]) -> Shaped:
    """GSM8K's own rows have the answer after `####` of a worked solution."""
    gold = _answer(row).rpartition("####")[2].strip()
    if to_number(gold) is None:
        raise UnusableRow(f"the answer {gold[:80]!r} is not a number: no answer could be right")
    return {"problem": _problem(row)}, gold


def countdown_row(row: dict[str, Any]) -> Shaped:
    """The gold answer is what a right one must be made of, as there is more than one."""
    numbers, target = row.get("numbers"), row.get("target")
    whole = [*numbers, target] if isinstance(numbers, list | tuple) and numbers else [None]
    if not all(type(number) is int for number in whole):
        raise UnusableRow(f"no answer: numbers and target must be whole numbers, not {numbers!r} and {target!r}")
    return {"problem": _problem(row)}, json.dumps({"numbers": numbers, "target": target})


def math_row(row: dict[str, Any]) -> Shaped:
    """A gold answer is compared as it is written or as mathematics; it must be something, and its braces must close."""
    gold = _answer(row)
    if not bare_latex(gold) or not braces_close(gold):
        raise UnusableRow(f"the answer {gold[:80]!r} is empty or its braces do not close: no answer could be right")
    return {"problem": _problem(row)}, _corrected(_problem(row), gold)


def _corrected(problem: str, gold: str) -> str:
    """The right answer of a problem whose published one is known to be wrong."""
    for (start, wrong), right in ERRATA.items():
        if problem.startswith(start) and gold == wrong:
            write_stderr(f"evals: the published answer {wrong} to {start!r} ... is wrong: {right} is used")
            return right
    return gold


def choice_row(row: dict[str, Any]) -> Shaped:
    """Local rows: `choices` in order and a letter; GPQA's own: four texts, shuffled by a seed made of the question."""
    problem = _problem(row)
    if row.get("choices") is not None:
        choices, gold = _choices(row["choices"]), to_letter(_answer(row))
    else:
        right = _first(row, "Correct Answer", what="answer")
        wrong = [_first(row, f"Incorrect Answer {i}", what="choice") for i in (1, 2, 3)]
        choices = [right, *wrong]
        random.Random(problem).shuffle(choices)
        gold = LETTERS[choices.index(right)]
    if gold not in list(LETTERS[: len(choices)]):
        raise UnusableRow(f"the answer {gold[:80]!r} is none of {LETTERS[: len(choices)]}: no answer could be right")
    return {"problem": problem, "choices": [choice.strip() for choice in choices]}, gold


def _choices(value: Any) -> list[str]:
    """Raises UnusableRow."""
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise UnusableRow(f"choices must be a list of 2 to {len(LETTERS)} texts, not {str(value)[:80]!r}")
    return [_first({"a choice": choice}, "a choice", what="choice", kinds=(str, int, float)) for choice in value]


def code_row(row: dict[str, Any]) -> Shaped:
    """LiveCodeBench's own rows, HumanEval's, or local ones with `tests`: a list of {input, output, function?}."""
    if "entry_point" in row:
        return _function_row(row)
    tests = row.get("tests")
    if tests is None:
        written = [*_tests(row, "public_test_cases"), *_tests(row, "private_test_cases")]
        function = str(_function(row) or "")
        tests = [{**test, "function": function if test.get("testtype", "") == "functional" else ""} for test in written]
    if not isinstance(tests, list) or not tests:
        raise UnusableRow("no answer: there are no tests")
    for number, test in enumerate(tests, 1):
        if fault := _test_fault(test):
            raise UnusableRow(f"no answer: test {number} {fault}")
    return {"problem": _problem(row), "starter": str(row.get("starter_code") or "")}, json.dumps(tests)


def _function_row(row: dict[str, Any]) -> Shaped:
    """HumanEval's own: the head of a function, and code that defines check(candidate)."""
    texts = {key: _first(row, key, what=key) for key in ("prompt", "entry_point", "test")}
    test = {"function": texts["entry_point"], "setup": texts["prompt"], "check": texts["test"]}
    if fault := _test_fault(test):
        raise UnusableRow(f"no answer: the test {fault}")
    return {"problem": texts["prompt"]}, json.dumps([test])


def _function(row: dict[str, Any]) -> Any:
    """Raises UnusableRow."""
    metadata = row.get("metadata") or "{}"
    try:
        return (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    except (ValueError, RecursionError, AttributeError) as error:
        raise UnusableRow(f"metadata must be a JSON object, not {str(metadata)[:80]!r}") from error


def _test_fault(test: Any) -> str | None:
    """Why no program could pass it."""
    has_check = isinstance(test, dict) and "check" in test
    if not has_check and not (isinstance(test, dict) and _is_said(test.get("input")) and _is_said(test.get("output"))):
        return "is without input and output as texts"
    function = test.get("function") or ""
    if not function and not has_check:
        return None
    if not isinstance(function, str) or not function.isidentifier():
        return f"calls {str(function)[:80]!r}, which is no name of a function"
    if has_check:
        return _check_fault(test)
    lines = [line for line in str(test["input"]).split("\n") if line.strip()]
    for text in (*lines, str(test["output"])):
        try:
            is_json = bool(json.loads(text) == json.loads(text))  # what holds a NaN equals nothing
        except (ValueError, RecursionError):
            is_json = False
        if not is_json:
            return f"calls a function, and {text[:80]!r} is not JSON: one argument a line, and the result"
    return None


def _check_fault(test: dict[str, Any]) -> str | None:
    for key in ("setup", "check"):
        try:
            ast.parse(str(test.get(key) or ""))
        except (SyntaxError, ValueError, RecursionError) as error:
            return f"has a {key} that is no Python: {error}"
    return None if "def check(" in str(test["check"]) else "defines no check(candidate)"


def _is_said(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


class _PlainUnpickler(pickle.Unpickler):
    """Strings only: the data set pickles JSON text, and anything else in there would be code to run."""

    def find_class(self, module: str, name: str) -> Any:
        raise UnusableRow(f"private tests want to import {module}.{name}")


def _tests(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Raises UnusableRow."""
    packed = row.get(key)
    if not packed:
        return []
    try:
        value = json.loads(packed) if isinstance(packed, str) else packed
    except (ValueError, RecursionError):
        value = _unpacked(packed, key)
    if not isinstance(value, list) or not all(isinstance(test, dict) for test in value):
        raise UnusableRow(f"{key} must be a list of tests, not {str(value)[:80]!r}")
    return value


def _unpacked(packed: str, key: str) -> Any:
    """LiveCodeBench's private tests. Raises UnusableRow."""
    try:
        return json.loads(_PlainUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load())
    except UnusableRow:
        raise
    except Exception as error:  # whatever a damaged pickle raises
        raise UnusableRow(f"{key} is neither JSON nor packed JSON: {type(error).__name__}: {error}") from error


def is_in_window(row: dict[str, Any]) -> bool:
    date = str(row.get("contest_date") or "")[:10]
    return not date or WINDOW[0] <= date <= WINDOW[1]


SHAPES: dict[str, Callable[[dict[str, Any]], Shaped]] = {
    "number": number_row,
    "countdown": countdown_row,
    "math": math_row,
    "choice": choice_row,
    "code": code_row,
}
