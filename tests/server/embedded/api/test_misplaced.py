"""On the served app, every route that generates text refuses what stands where it does not read it.

Places and spellings: tests/unit/integration/http/test_endpoints.py.
"""

import json
from typing import Any

import httpx
import pytest

from led_sglang.integration.http.endpoints import (
    ENDPOINTS,
    GENERATE,
    INVOCATIONS,
    OPENAI_PATHS,
    RESPONSES,
    TRANSCRIPTIONS,
    VERTEX,
)
from tests.server.api import CHAT, COMPLETIONS, MODEL, body, counters, growth, message_of, messages, thinking_prompt

pytestmark = pytest.mark.server
LED = {"depth": 3}
EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    ({"led": LED}, "led"),
    ({"LED": True}, "LED"),
    ({"extra_body": {"custom_params": {"led": LED}}}, "extra_body.custom_params.led"),
    ({"custom_params": {"depth": 3}}, "custom_params.depth"),
    ({"custom_params": {"Led": LED}}, "custom_params.Led"),
    ({"options": {"led": LED}}, "options.led"),
    ({"chat_template_kwargs": {"led": False}}, "chat_template_kwargs.led"),
]
CUSTOM = ({"custom_params": {"led": LED}}, "custom_params.led")
METADATA = ({"metadata": {"led": "true"}}, "metadata.led")


def request_of(path: str) -> dict[str, Any]:
    """One that is served."""
    if path in (CHAT, INVOCATIONS, "/api/chat", "/v1/messages"):
        return {"model": MODEL, "messages": messages(), "max_tokens": 4, "options": {"num_predict": 4}}
    if path == RESPONSES:
        return {"model": MODEL, "input": "1 +", "max_output_tokens": 8}
    if path == "/api/generate":
        return {"model": MODEL, "prompt": "1 +", "options": {"num_predict": 4}}
    if path == VERTEX:
        return {"instances": [{"text": thinking_prompt()}], "parameters": {"sampling_params": {"max_new_tokens": 4}}}
    return body(path, max_tokens=4)


def places(path: str) -> list[tuple[dict[str, Any], str]]:
    others = EVERYWHERE if path in OPENAI_PATHS else [*EVERYWHERE, CUSTOM, METADATA]
    sampling = {"sampling_params": {"custom_params": {"led": LED}}}
    return others if path == GENERATE else [*others, (sampling, "sampling_params.custom_params.led")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [path for path in ENDPOINTS if path != TRANSCRIPTIONS])
def test_what_is_misplaced_is_refused_by_name(http: httpx.Client, path: str, stream: bool) -> None:
    before = counters(http)
    requested = {**request_of(path), **({} if path == VERTEX else {"stream": stream})}
    for extra, name in places(path):
        answer = http.post(path, json={**requested, **extra})
        assert answer.status_code == 400, (extra, answer.text)
        assert message_of(answer).startswith(f"{name}: "), answer.text
    assert growth(before, counters(http))["requests"] == {}
    assert (
        http.post(path, json={**requested, "custom_params": {"other": 1}, "metadata": {"user": "led"}}).status_code
        == 200
    )
    assert growth(before, counters(http))["requests"] == {"led": 1}


def test_a_form_is_refused_too(http: httpx.Client) -> None:
    files = {"file": ("a.wav", b"RIFF")}
    for data in ({"led": "true"}, {"custom_params": '{"led": true}'}):
        answer = http.post(TRANSCRIPTIONS, files=files, data=data)
        assert answer.status_code == 400 and "no place for LED's parameters" in answer.text


def test_put_is_post(http: httpx.Client) -> None:
    """SGLang's /generate takes both."""
    request = {**body(GENERATE, {"depth": 99}), "stream": True}
    assert http.put(GENERATE, json=request).status_code == 400
    assert http.put(GENERATE, json=body(GENERATE, {"depth": 2})).json()["meta_info"]["led_params"]["depth"] == 2


@pytest.mark.parametrize("metadata", ["x", '{"led": true}', 5, [1], [["led", "true"]], True])
def test_metadata_of_responses_that_is_no_object(http: httpx.Client, metadata: object) -> None:
    for extra in ({}, {"custom_params": {"led": LED}}):
        answer = http.post(RESPONSES, json={**request_of(RESPONSES), "metadata": metadata, **extra})
        assert answer.status_code == 400, answer.text
        assert "metadata" in message_of(answer)


def test_an_escaped_key_is_read(http: httpx.Client) -> None:
    for path in (CHAT, COMPLETIONS):
        request = json.dumps(body(path, {"depth": 99})).replace('"led"', r'"\u006ced"')
        answer = http.post(path, content=request, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "depth must be an integer" in message_of(answer)
