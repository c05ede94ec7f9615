"""`python -m led_sglang.evals grade` gives every answer of the table its verdict, and refuses a file that is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from led_sglang.evals.__main__ import main
from led_sglang.evals.answers.numbers import find_number, to_number
from tests.unit.evals.grade.answer_table import ANSWERS, GROUPS


def graded(task: str, rows: list[dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["grade", "--task", task, str(path)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_table_is_large_and_has_every_kind_of_verdict() -> None:
    assert len(ANSWERS) >= 150
    for task in GROUPS:
        assert {outcome for name, _, _, outcome in ANSWERS if name == task} == {"right", "wrong", "no_answer"}


@pytest.mark.parametrize("task", GROUPS)
def test_every_answer_of_the_table(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [row for row in ANSWERS if row[0] == task]
    lines = graded(task, [{"text": text, "expected": expected} for _, expected, text, _ in table], tmp_path, capsys)
    assert len(lines) == len(table) and all({"outcome", "answer"} <= set(line) for line in lines)
    differ = [
        (expected, text, outcome, line)
        for (_, expected, text, outcome), line in zip(table, lines, strict=True)
        if line["outcome"] != outcome
    ]
    assert not differ
    assert all((line["answer"] is None) == (line["outcome"] == "no_answer") for line in lines)


def test_thinking_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "<think>\\boxed{5}</think> It is 6.", "expected": 6},
        {"text": "It is 6.", "expected": 6, "reasoning": "5 or 6", "finish": "stop"},
        {"text": "Perhaps 6", "expected": 6, "finish": "length"},
        {"text": "", "expected": 6, "reasoning": "It is 6.", "finish": None},
    ]
    assert [line["outcome"] for line in graded("gsm8k", rows, tmp_path, capsys)] == [*["right"] * 2, *["no_answer"] * 2]


def test_a_countdown_and_tests_may_be_json_or_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = {"numbers": [5, 8, 8], "target": 24}
    rows = [{"text": "(8 - 5) * 8", "expected": expected} for expected in (gold, json.dumps(gold))]
    assert [line["outcome"] for line in graded("countdown", rows, tmp_path, capsys)] == ["right"] * 2
    test = {"input": "", "output": "1"}
    rows = [{"text": "print(1)", "expected": expected} for expected in (test, [test], json.dumps([test]))]
    assert [line["outcome"] for line in graded("livecodebench", rows, tmp_path, capsys)] == ["right"] * 3


@pytest.mark.parametrize(
    ("task", "line", "reason"),
    [
        ("gsm8k", '{"text": "5"}', "no expected"),
        ("gsm8k", '{"expected": "5"}', "text must be a text, not missing"),
        ("gsm8k", '{"text": 5, "expected": "5"}', "text must be a text, not a number"),
        ("gsm8k", '{"text": "5", "expected": "five"}', "'five' is not a number"),
        ("gsm8k", '{"text": "5", "expected": [5]}', "expected_answer must be a text or a number"),
        ("gsm8k", "[5]", "not a JSON object"),
        ("gsm8k", "5 5", "not JSON"),
        ("math500", '{"text": "5", "expected": "\\\\frac{1"}', "braces do not close"),
        ("gpqa_diamond", '{"text": "A", "expected": "Z"}', "expected must be a letter"),
        ("livecodebench", '{"text": "A", "expected": "Z"}', "expected is not JSON"),
        ("livecodebench", '{"text": "A", "expected": []}', "there are no tests"),
        ("countdown", '{"text": "1", "expected": [1]}', "expected must be"),
        ("gsm8k,math500", '{"text": "1", "expected": 1}', "grade takes one task"),
        ("gsm9k", '{"text": "1", "expected": 1}', "unknown task gsm9k"),
    ],
)
def test_a_line_that_cannot_be_graded(
    task: str, line: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "A", "expected": "1"}\n' * (task == "gsm8k") + line + "\n")
    assert main(["grade", "--task", task, str(path)]) == 1
    said = capsys.readouterr()
    assert reason in said.err and not said.out
    assert "task" in said.err or f"{path}:{1 + (task == 'gsm8k')}" in said.err


def test_no_text_makes_the_number_grader_raise() -> None:
    """They run in the client's own process."""
    for text in ("(" * 8000 + "1", "1" * 8000, "\\frac{" * 2000 + "1", "1/" * 4000 + "1", "9**" * 60 + "9", "{" * 8000):
        for shown in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
            found = find_number(shown)
            assert found is None or len(found.values) <= 2
    assert to_number("1" * 5000) is None and to_number("inf") is None and to_number("5 apples") is None
