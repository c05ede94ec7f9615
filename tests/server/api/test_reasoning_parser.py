"""With --reasoning-parser LED explores the thought, and the grammar begins where the thought ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from tests.server.api.talking import MODEL, check_trace, messages
from tests.server.launching import Server

pytestmark = pytest.mark.server

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["sum", "product"]}, "is_hard": {"type": "boolean"}},
    "required": ["kind", "is_hard"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(logs: Path) -> Iterator[OpenAI]:
    # Without the second flag JSON may begin with newlines for ever, and from a small model it does.
    arguments = ("--reasoning-parser", "qwen3", "--constrained-json-disable-any-whitespace")
    with (
        Server(*arguments, log=logs / "reasoning.log") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("seed", range(4))
def test_a_thought_and_then_json(client: OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
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


def test_streaming_keeps_them_apart(client: OpenAI) -> None:
    stream: Any = client.chat.completions.create(
        model=MODEL, messages=messages(), max_tokens=300, temperature=0.6, seed=1, response_format=FORMAT, stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    content = "".join(delta.content or "" for delta in deltas)
    jsonschema.validate(json.loads(content), SCHEMA)
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)


def test_markers_are_the_parsers(client: OpenAI) -> None:
    info = httpx.get(str(client.base_url).removesuffix("/v1/") + "/led/info").json()
    assert (info["markers"]["open"]["text"], info["markers"]["close"]["text"]) == ("<think>", "</think>")
