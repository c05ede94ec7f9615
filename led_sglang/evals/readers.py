"""Rows of the data sets as their authors publish them, or of local JSONL, to problem texts and gold answers."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from led_sglang.evals.errors import EvalError

ID_KEYS = ("id", "unique_id", "ID", "Record ID", "question_id")
LETTERS = "ABCDEFGHIJ"
WINDOW = ("2024-08-01", "2025-01-31")  # LiveCodeBench v5 as in the paper: 279 problems
STDIN_FORM = (
    "Read the inputs from stdin, solve the problem and write the answer to stdout (do not test directly on the sample "
    "inputs). Put the whole program into one block:\n```python\n# your code\n```"
)
STARTER_FORM = "Use this starter code and put the whole program into one block:\n```python\n{starter}\n```"

Shaped = tuple[dict[str, str], str]  # (what the prompt's slots hold, gold answer)


class UnusableRow(ValueError):
    """A row without a question or an answer."""


def local_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for each line. Raises EvalError for a missing file or a line that is no JSON object."""
    if not path.is_file():
        raise EvalError(f"{path} is missing: --data DIR needs one <task>.jsonl for every task")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise EvalError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise EvalError(f"{where}: not a JSON object")
            yield where, row


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
    except EvalError:
        raise
    except Exception as error:  # the hub's clients raise a dozen kinds for "not reachable" and "not allowed"
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
        raise EvalError(f"cannot load {name} from the hub ({reason}); give local files with --data DIR") from error


def _first(row: dict[str, Any], *keys: str, what: str) -> str:
    for key in keys:
        if row.get(key) is not None and str(row[key]).strip():
            return str(row[key])
    raise UnusableRow(f"no {what} (looked for {', '.join(keys)})")


def _problem(row: dict[str, Any]) -> str:
    return _first(row, "problem", "question", "Question", "question_content", what="question")


def _answer(row: dict[str, Any]) -> str:
    return _first(row, "expected_answer", "answer", "Answer", what="answer")


def number_row(row: dict[str, Any]) -> Shaped:
    """GSM8K's own rows have the answer after `####` of a worked solution."""
    from led_sglang.evals.graders import to_number

    gold = _answer(row).rpartition("####")[2].strip()
    if to_number(gold) is None:
        raise UnusableRow(f"the answer {gold[:80]!r} is not a number")
    return {"problem": _problem(row)}, gold


def countdown_row(row: dict[str, Any]) -> Shaped:
    """The gold answer is what a right one must be made of, as there is more than one."""
    numbers, target = row.get("numbers"), row.get("target")
    whole = [*numbers, target] if isinstance(numbers, list | tuple) and numbers else [None]
    if not all(type(number) is int for number in whole):
        raise UnusableRow(f"no answer: numbers and target must be whole numbers, not {numbers!r} and {target!r}")
    return {"problem": _problem(row)}, json.dumps({"numbers": numbers, "target": target})


def math_row(row: dict[str, Any]) -> Shaped:
    return {"problem": _problem(row)}, _answer(row)


def choice_row(row: dict[str, Any]) -> Shaped:
    """Local rows: `choices` in order and a letter; GPQA's own: four texts, shuffled by a seed made of the question."""
    problem = _problem(row)
    if isinstance(row.get("choices"), list):
        choices, gold = [str(choice) for choice in row["choices"]], _answer(row).strip("() ")
    else:
        right = _first(row, "Correct Answer", what="answer")
        wrong = [_first(row, f"Incorrect Answer {i}", what="choice") for i in (1, 2, 3)]
        choices = [right, *wrong]
        random.Random(problem).shuffle(choices)
        gold = LETTERS[choices.index(right)]
    if gold not in LETTERS[: len(choices)]:
        raise UnusableRow(f"the answer {gold[:80]!r} is none of {LETTERS[: len(choices)]}")
    shown = "\n".join(f"({letter}) {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False))
    return {"problem": problem, "choices": shown}, gold


def code_row(row: dict[str, Any]) -> Shaped:
    """LiveCodeBench's own rows, or local ones with `tests`: a list of {input, output, function?}."""
    starter = str(row.get("starter_code") or "")
    form = STARTER_FORM.format(starter=starter) if starter.strip() else STDIN_FORM
    tests = row.get("tests")
    if tests is None:
        metadata = json.loads(row.get("metadata") or "{}")
        written = [*_tests(row.get("public_test_cases")), *_tests(row.get("private_test_cases"))]
        function = str(metadata.get("func_name") or "")
        tests = [{**test, "function": function if test.get("testtype", "") == "functional" else ""} for test in written]
    if not tests or any("input" not in test or "output" not in test for test in tests):
        raise UnusableRow("no answer: there are no tests, or one without input and output")
    return {"problem": _problem(row), "form": form}, json.dumps(tests)


class _PlainUnpickler(pickle.Unpickler):
    """Strings only: the data set pickles JSON text, and anything else in there would be code to run."""

    def find_class(self, module: str, name: str) -> Any:
        raise UnusableRow(f"private tests want to import {module}.{name}")


def _tests(packed: Any) -> list[dict[str, Any]]:
    if not packed:
        return []
    try:
        value = json.loads(packed) if isinstance(packed, str) else packed
    except json.JSONDecodeError:
        text = _PlainUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        value = json.loads(text)
    return [dict(test) for test in value]


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
