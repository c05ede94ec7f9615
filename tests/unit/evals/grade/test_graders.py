"""Answers found and graded: every gold answer of the real data right, wrong and missing ones told apart."""

import json
from pathlib import Path

import pytest

from led_sglang.evals.answers.text import final_text, last_boxed
from led_sglang.evals.grade.graders import GRADERS, grade_choice, grade_math, grade_number
from led_sglang.evals.tasks import TASKS, load

DATA = Path(__file__).parents[5] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark questions are not on this machine")
BENCHMARKS = {"gsm8k": 1319, "math500": 500, "aime2024": 30, "aime2025": 30}


@needs_data
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_gold_answer_is_right_and_its_neighbours_is_wrong(name: str) -> None:
    questions = load(TASKS[name], DATA, None, 0)
    assert len(questions) == BENCHMARKS[name]
    grade = GRADERS[TASKS[name].grader]
    boxed = {q.id: grade(f"Thus it is $\\boxed{{{q.gold}}}$.", q.gold).outcome for q in questions}
    assert {i: o for i, o in boxed.items() if o != "right"} == {}
    # A fifth of them, to save time: compared with a number that is in no gold answer: nothing may be right.
    lenient = [q.gold for q in questions[::5] if grade("It is \\boxed{-918273645}.", q.gold).outcome != "wrong"]
    assert lenient == []
    assert all(grade("", q.gold).outcome == "no_answer" for q in questions)


@needs_data
def test_math_verify_itself_understands_every_gold_answer() -> None:
    """Spelt differently, so that the comparison of the text alone cannot say right."""
    golds = [json.loads(line)["expected_answer"] for line in (DATA / "math500.jsonl").read_text().splitlines()]
    numeric = [gold for gold in golds if gold.lstrip("-").isdigit()][::2]
    assert len(numeric) > 100
    assert [g for g in numeric if grade_math(f"\\boxed{{\\frac{{{2 * int(g)}}}{{2}}}}", g).outcome != "right"] == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{14}{3}", "14/3"),
        ("0.15", "\\frac{3}{20}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"),
        ("x=5", "5"),
        ("1,-2", "-2,1"),
        ("11\\sqrt2", "\\sqrt{242}"),
        ("52_8", "52_{8}"),
        ("10,\\!080", "10080"),
        ("\\$32,\\!348", "32348"),
        ("90^\\circ", "90"),
        ("5.4 \\text{ cents}", "5.4"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19},1-\\sqrt{19}"),
        ("\\text{(C)}", "C"),
        ("\\text{Evelyn}", "Evelyn"),
        ("6+9i", "9i+6"),
        ("(a+5)(b+2)", "ab+2a+5b+10"),
        ("73", "073"),
    ],
)
def test_the_same_in_other_words(gold: str, answer: str) -> None:
    assert grade_math(f"So \\boxed{{{answer}}}", gold).outcome == "right"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("5", "6"), ("p - q", "q - p"), ("(3,4]", "[3,4]"), ("\\text{even}", "odd"), ("52_8", "42"), ("3, 5, 7", "3, 5")],
)
def test_what_is_wrong(gold: str, answer: str) -> None:
    assert grade_math(f"So \\boxed{{{answer}}}", gold).outcome == "wrong"


def test_countdown_takes_any_expression_that_is_right() -> None:
    grade = GRADERS["countdown"]
    gold = '{"numbers": [5, 8, 8], "target": 24}'
    for text, outcome in {
        "Use (8 - 5) * 8.": "right",
        "8 * (8 - 5) = 24": "right",
        "It is 8 * 3.": "wrong",
        "It is 24.": "no_answer",
        "": "no_answer",
    }.items():
        assert grade(text, gold).outcome == outcome, text
    assert grade("Use (8 - 5) * 8.", gold).answer == "(8 - 5) * 8"


def test_math_without_a_box() -> None:
    assert grade_math("I do not know.", "5").outcome == "no_answer"
    assert grade_math("The answer is $5$.", "5").outcome == "right"
    assert grade_math("\\boxed{" + "1+" * 3000 + "1}", "3001").outcome == "wrong"


@pytest.mark.parametrize(
    ("text", "gold", "outcome"),
    [
        ("It is 12.", "12", "right"),
        ("She makes $1,234.50 a day.", "1234.5", "right"),
        ("3 + 4 = 7", "7", "right"),
        ("17-5", "-5", "wrong"),
        ("The result is -5.", "-5", "right"),
        ("\\boxed{42} is what I get, in 7 steps", "42", "right"),
        ("\\boxed{\\$70,000}", "70000", "right"),
        ("first 12, then 13", "12", "wrong"),
        ("no idea", "12", "no_answer"),
        ("", "12", "no_answer"),
    ],
)
def test_numbers(text: str, gold: str, outcome: str) -> None:
    assert grade_number(text, gold).outcome == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("\\boxed{B}", "right"),
        ("\\boxed{\\text{(B)}}", "right"),
        ("The answer is (B).", "right"),
        ("Answer: **B**", "right"),
        ("(A) is tempting, but (B)", "right"),
        ("B", "right"),
        ("\\boxed{A}", "wrong"),
        ("All of them are nice.", "no_answer"),
    ],
)
def test_choices(text: str, outcome: str) -> None:
    assert grade_choice(text, "B").outcome == outcome


@pytest.mark.parametrize(
    ("content", "reasoning", "finish", "expected"),
    [
        ("7 7 7</think> 5", "", "stop", "5"),
        ("7 7 7", "", "length", ""),  # cut off: perhaps still thinking
        ("5", "", "stop", "5"),
        ("5", "thought", "length", "5"),  # a parser took the thinking out
        ("", "thought", "length", ""),
        ("a</think>b</think>c", "", "stop", "c"),
    ],
)
def test_only_what_follows_the_thinking_counts(content: str, reasoning: str, finish: str, expected: str) -> None:
    assert final_text(content, reasoning, finish, "auto") == expected


def test_thinking_may_be_required() -> None:
    assert final_text("5", "", "stop", "required") == ""
    assert final_text("x</think>5", "", "stop", "required") == "5"


def test_boxes() -> None:
    assert last_boxed("\\boxed{1} and \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{a\\}b}") == "a\\}b"
    assert last_boxed("\\boxed{1} and \\boxed{2") == "1"
    assert last_boxed("none") is None
