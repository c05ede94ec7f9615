"""The chat template: several turns, every shape of content, and the text that training renders by hand."""

from typing import Any

import pytest

from led_sglang.embedded import tasks, tokenizer
from training.batches import render

TOKENIZER = tokenizer.build()
OPENING = "<|im_start|>assistant\n<think>\n"


def render_chat(messages: list[dict[str, Any]], **options: Any) -> str:
    options.setdefault("add_generation_prompt", True)
    return str(TOKENIZER.apply_chat_template(messages, tokenize=False, **options))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_earlier_thinking_is_left_out() -> None:
    answer = {"role": "assistant", "content": "<think>\n1 + 1 = 2.\n</think>\n\nIt is 2."}
    shown = render_chat([{"role": "system", "content": "Be brief."}, user("1 + 1?"), answer, user("And 2 + 2?")])
    assert shown == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 2.<|im_end|>\n<|im_start|>user\nAnd 2 + 2?<|im_end|>\n" + OPENING
    )


def test_thinking_without_its_opening_is_left_out_too() -> None:
    # The prompt opens the thought, so what a client sends back usually starts inside it.
    answer = {"role": "assistant", "content": "1 + 1 = 2.\n</think>\n\nIt is 2."}
    assert "1 + 1 = 2" not in render_chat([user("1 + 1?"), answer, user("Sure?")])


@pytest.mark.parametrize("split", [True, False])
def test_thinking_of_the_last_turn_stays(split: bool) -> None:
    whole = {"content": "<think>\nEasy.\n</think>\n\nIt is 2."}
    parsed = {"reasoning_content": "Easy.", "content": "It is 2."}
    shown = render_chat(
        [user("1 + 1?"), {"role": "assistant", **(parsed if split else whole)}], add_generation_prompt=False
    )
    assert shown.endswith("<|im_start|>assistant\n<think>\nEasy.\n</think>\n\nIt is 2.<|im_end|>\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "b"}], "b"),
    ],
)
def test_content_of_any_shape(content: Any, text: str) -> None:
    assert render_chat([user(content)]) == f"<|im_start|>user\n{text}<|im_end|>\n{OPENING}"


def test_odd_messages_do_not_crash() -> None:
    assert render_chat([{"role": "assistant"}]).endswith(OPENING)
    assert render_chat([{"role": "tool", "content": "7"}]).endswith(OPENING)


def test_tools_are_ignored() -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
    assert render_chat([user("hi")], tools=[tool]) == render_chat([user("hi")])


@pytest.mark.parametrize("system", [None, "Think step by step."])
def test_training_sees_what_the_template_renders(system: str | None) -> None:
    head = [{"role": "system", "content": system}] if system else []
    for problem in [*tasks.generate("arithmetic", "train", 20, 5), *tasks.generate("countdown", "train", 20, 5)]:
        example = render(problem, system)
        assert example.prompt == render_chat([*head, user(problem.question)])
        answer = {"role": "assistant", "content": example.completion.removesuffix("<|im_end|>")}
        whole = render_chat([*head, user(problem.question), answer], add_generation_prompt=False)
        assert whole == example.prompt + example.completion + "\n"
