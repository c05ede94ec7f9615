"""What the evaluation reports, against numbers worked out by hand."""

import pytest

from led_sglang.serving.ports import HeldPort
from training import evaluate
from training.scoring import final_answer, sample_scores, score, wilson_interval


def test_wilson_interval() -> None:
    # 8 of 10 is the textbook's example.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_score() -> None:
    document = score([True, False, True, True]).as_document(method="led")
    assert (document["problems"], document["correct"], document["accuracy"]) == (4, 3, 0.75)
    assert document["method"] == "led"
    with pytest.raises(ValueError, match="nothing"):
        score([])


def test_sample_scores() -> None:
    # Shares 1, 1/2 and 0: mean 1/2, variance 1/4 over three problems.
    scores = sample_scores([[True, True], [False, True], [False, False]])
    assert scores == {"problems": 3, "samples": 2, "pass_at_1": 0.5, "standard_error": 0.2887, "pass_at_n": 0.6667}
    with pytest.raises(ValueError, match="nothing"):
        sample_scores([[]])


def test_the_report_of_one_sample_has_an_interval_and_of_more_has_none() -> None:
    assert "wilson_95" in evaluate.report([[True], [False]])
    assert "wilson_95" not in evaluate.report([[True, False], [False, False]], task="countdown")


def test_unfinished_thinking_has_no_answer() -> None:
    assert final_answer("Then 3 + 4 = 7.") == ""
    assert final_answer("7.\n</think>\n\nIt is 7.") == "\n\nIt is 7."


@pytest.mark.parametrize(
    ("content", "reasoning", "answer"),
    [
        ("so 7.\n</think>\n\nIt is 7.", None, "\n\nIt is 7."),
        ("It is 7.", "so 7.", "It is 7."),
        (None, "so 7", ""),
        ("so 7", None, ""),
    ],
)
def test_answer_in_message(content: str | None, reasoning: str | None, answer: str) -> None:
    assert evaluate.answer_in({"content": content, "reasoning_content": reasoning}) == answer


def test_method_none_says_so() -> None:
    assert evaluate.led_params("none") == {"led": False}
    assert evaluate.led_params("led") == {"led": {"method": "led"}}


@pytest.mark.parametrize(
    "arguments", [["--base-url", "http://127.0.0.1:{port}/v1"], ["--offline", "--model", "/no{port}"]]
)
def test_nothing_to_sample_from(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with HeldPort() as port:
        requested = [word.format(port=port.number) for word in arguments]
        assert evaluate.main([*requested, "--problems", "2"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("evaluate: ") and requested[-1] in shown.err and not shown.out
