"""With --reasoning-parser LED explores the thought, and the grammar begins where the thought ends."""

import json
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from led_sglang.testing import check_trace
from tests.server.api import MODEL, messages

pytestmark = pytest.mark.server

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["sum", "product"]}, "is_hard": {"type": "boolean"}},
    "required": ["kind", "is_hard"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("seed", range(4))
def test_a_thought_and_then_json(openai: OpenAI, seed: int) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=messages(),
        max_tokens=300,
        temperature=0.6,
        seed=seed,
        response_format=FORMAT,
        extra_body={"custom_params": {"led": {"trace": True}}, "return_meta_info": True},
    )
    choice: Any = answer.choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert len(choice.message.reasoning_content) > 20
    assert "think>" not in choice.message.reasoning_content
    check_trace(choice.meta_info)
    thinks = choice.meta_info["led_think"]
    num_thinking = sum(thinks)
    assert thinks == [True] * num_thinking + [False] * (len(thinks) - num_thinking)
    assert choice.meta_info["led_stats"]["led_tokens"] == num_thinking > 0
    assert len(thinks) > num_thinking, "the JSON is the engine's"


def test_streaming_keeps_them_apart(openai: OpenAI) -> None:
    stream: Any = openai.chat.completions.create(
        model=MODEL, messages=messages(), max_tokens=300, temperature=0.6, seed=1, response_format=FORMAT, stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    content = "".join(delta.content or "" for delta in deltas)
    jsonschema.validate(json.loads(content), SCHEMA)
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)


def test_markers_are_the_parsers(http: httpx.Client) -> None:
    info = http.get("/led/info").json()
    assert (info["markers"]["open"]["text"], info["markers"]["close"]["text"]) == ("<think>", "</think>")
