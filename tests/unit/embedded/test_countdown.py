"""Countdown: seeded, split without overlap, every search right in every step, and expressions checked, not compared."""

import re

import pytest

from led_sglang.embedded import countdown, expressions, search
from led_sglang.embedded.countdown import is_solution, last_expression

PROBLEMS = countdown.generate("train", 300, seed=1) + countdown.generate("held_out", 300, seed=1)
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+),")


def test_the_seed_decides() -> None:
    assert countdown.generate("train", 20, seed=7) == countdown.generate("train", 20, seed=7)
    assert countdown.generate("train", 20, seed=7) != countdown.generate("train", 20, seed=8)


def test_no_problem_is_in_both_splits() -> None:
    train = {problem.key for problem in countdown.generate("train", 3000, seed=0)}
    held_out = {problem.key for problem in countdown.generate("held_out", 500, seed=3)}
    assert (len(train), len(held_out)) == (3000, 500)
    assert not train & held_out
    # Not by luck: neither seed nor the numbers' order decides, only the numbers and the target.
    assert {countdown.split_of(key) for key in train} == {"train"}
    assert {countdown.split_of(key) for key in held_out} == {"held_out"}
    assert countdown.key_of((3, 8, 5), 24) == countdown.key_of((8, 5, 3), 24) != countdown.key_of((8, 5, 3), 25)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out"):
        countdown.generate("test", 1, seed=0)  # type: ignore[arg-type]


def test_every_written_step_and_every_written_answer_is_right() -> None:
    num_dead_ends = 0
    for problem in PROBLEMS:
        assert countdown.grade(problem.answer_text, problem), problem
        equations = EQUATION.findall(problem.thinking)
        for left, op, right, result in equations:
            assert expressions.OPERATIONS[op](int(left), int(right)) == int(result), problem.thinking
        assert int(equations[-1][3]) == problem.target
        num_dead_ends += len(equations) - len(problem.numbers) + 1
        # The last sentence writes the target out, one operand more at a time.
        chain = problem.thinking.rpartition(". ")[2].rstrip(".").split(" = ")[1:]
        assert len(chain) == len(problem.numbers) - 1
        assert {eval(text) for text in chain} == {problem.target}
    assert num_dead_ends > len(PROBLEMS)


def test_what_is_written_fits_the_limit_of_the_evaluation() -> None:
    from led_sglang.embedded import tokenizer
    from training.batches import render
    from training.evaluate import MAX_NEW_TOKENS

    build = tokenizer.build()
    assert max(len(build.encode(render(problem).completion)) for problem in PROBLEMS) < MAX_NEW_TOKENS


def test_luck() -> None:
    assert search.luck((3, 8), 24) == pytest.approx(1 / 3)  # 11, 5 or 24
    assert search.luck((3, 8), 23) == 0.0
    # Of nine first steps, 5 + 3 leaves (8, 8) with 16 and 64; 5 - 3 leaves (2, 8) with 10, 6 and 16; 8 + 3 leaves
    # (5, 11) with 16, 6 and 55; 8 + 5 leaves (3, 13) with 16 and 10; the other five never make 16.
    assert search.luck((3, 5, 8), 16) == pytest.approx((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 9)
    assert search.luck((7,), 7) == 1.0


def test_many_searches_for_one_problem() -> None:
    import random

    found = {search.write((2, 3, 5, 8), 24, random.Random(seed))[1] for seed in range(100)}
    assert len(found) > 3
    assert all(is_solution(text, (8, 5, 3, 2), 24) for text in found)


@pytest.mark.parametrize(
    "text",
    [
        "(8 - 5) * 8",
        "8 * (8 - 5)",
        "24 = 8 * (8 - 5)",
        "8 * (8 - 5) = 24.",
        "I tried 5 + 8, so the answer is (8-5)*8.",
        "5 * 8 is wrong.\n</think>\n\nIt is (8 - 5) * 8.",
        "((8) - (5)) * 8",
    ],
)
def test_right_answers(text: str) -> None:
    assert countdown.grade(text, countdown.Countdown((5, 8, 8), 24, "", "", ""))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "I do not know.",
        "8 * 3",  # not the numbers given
        "8 + 8 + 8",  # one too often
        "(8 - 5) * 8 + 0",
        "(8 - 5) * 8 * 1",
        "8 - 5 * 8",  # another value
        "(8 - 5 * 8",
        "8 * (8 - 5)) 3 + 4",
        "8 8 - 5 +",
        "-5 + 8 + 8",
        "8 ** 5 - 8",
        "(8 - 5) * 8 \n</think>\n\nI am not sure.",
        "(8 - 5) * 8, no, it is 8 + 5 + 8.",
        "08 * (8 - 5)",
        "(" * 300 + "8 - 5" + ")" * 300 + " * 8",
        "8 * (8 - 5) or __import__('os').abort()" + " + 1 + 1",
    ],
)
def test_wrong_answers(text: str) -> None:
    assert not countdown.grade(text, countdown.Countdown((5, 8, 8), 24, "", "", ""))


def test_last_expression() -> None:
    assert last_expression("24 = 3 * 8.") == "3 * 8"
    assert last_expression("First 1 + 2, then (3 + 4) * 5 = 35") == "(3 + 4) * 5"
    assert last_expression("no 5 here") is None
