"""The problems: seeded, split without overlap, right in every step, and graded right."""

import re

import pytest

from led_sglang.embedded import expressions, problems

PROBLEMS = problems.generate("train", 300, seed=1) + problems.generate("held_out", 300, seed=1)
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)(?! [-+*])")


def test_the_seed_decides() -> None:
    assert problems.generate("train", 20, seed=7) == problems.generate("train", 20, seed=7)
    assert problems.generate("train", 20, seed=7) != problems.generate("train", 20, seed=8)


def test_no_expression_is_in_both_splits() -> None:
    train = {problem.expression for problem in problems.generate("train", 3000, seed=0)}
    held_out = {problem.expression for problem in problems.generate("held_out", 500, seed=0)}
    assert len(train) == 3000
    assert len(held_out) == 500
    assert not train & held_out
    # Not by luck: the split is a function of the expression alone.
    assert {problems.split_of(text) for text in train} == {"train"}
    assert {problems.split_of(text) for text in held_out} == {"held_out"}


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out"):
        problems.generate("test", 1, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("problem", PROBLEMS[::10], ids=lambda problem: problem.expression)
def test_shown_expression_means_its_answer(problem: problems.Problem) -> None:
    assert eval(problem.expression) == problem.answer
    assert 0 <= problem.answer <= expressions.MAX_VALUE


def test_every_written_step_is_right() -> None:
    num_steps = 0
    for problem in PROBLEMS:
        for left, op, right, result in EQUATION.findall(problem.thinking):
            assert expressions.OPERATIONS[op](int(left), int(right)) == int(result), problem.thinking
            num_steps += 1
    assert num_steps > 2 * len(PROBLEMS)


def test_thinking_varies_for_one_expression() -> None:
    import random

    from led_sglang.embedded.solutions import write_thinking

    expression = expressions.Node("+", expressions.Node("*", 5, 3), expressions.Node("-", 17, 14))
    orders = {re.findall(r"\d+ [-+*] \d+ =", write_thinking(expression, random.Random(seed)))[0] for seed in range(50)}
    assert len(orders) > 3


def test_grade() -> None:
    problem = problems.Problem("17 + 5", "What is 17 + 5?", 22, "", "")
    for right in ("22", "The answer is 22.", "17 + 5 = 22.", "it is 9\n</think>\n\nIt is 22."):
        assert problems.grade(right, problem)
    for wrong in ("", "The answer is 23.", "222", "-22", "22\n</think>\n\nIt is 21.", "22 </think> I do not know."):
        assert not problems.grade(wrong, problem)


def test_gold_answers_are_right_and_others_wrong() -> None:
    for problem in PROBLEMS:
        assert problems.grade(problem.answer_text, problem)
        assert not problems.grade(f"The answer is {problem.answer + 1}.", problem)
