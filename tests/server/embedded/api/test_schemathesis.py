"""Schemathesis draws LED's parameters from the server's own OpenAPI document: legal ones are served, others are 400."""

import json
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

pytestmark = pytest.mark.server

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    """The server's document, its chat request cut down to `custom_params.led`."""
    whole = http.get("/openapi.json").json()
    led = {"$ref": "#/components/schemas/LedParams"}
    custom = {"type": "object", "properties": {"led": led}, "required": ["led"], "additionalProperties": False}
    body = {"type": "object", "properties": {"custom_params": custom}, "required": ["custom_params"]}
    content = {"application/json": {"schema": {**body, "additionalProperties": False}}}
    operation = {
        "requestBody": {"required": True, "content": content},
        "responses": whole["paths"][PATH]["post"]["responses"],
    }
    schemas = {"LedParams": whole["components"]["schemas"]["LedParams"]}
    return {**whole, "paths": {PATH: {"post": operation}}, "components": {"schemas": schemas}}


def led_values(document: dict[str, Any], mode: GenerationMode) -> st.SearchStrategy[Any]:
    """Values of `custom_params.led` in bodies that have one."""
    cases = schemathesis.openapi.from_dict(document)[PATH]["POST"].as_strategy(generation_mode=mode)
    customs = cases.map(lambda case: case.body.get("custom_params") if isinstance(case.body, dict) else None)
    return customs.filter(lambda custom: isinstance(custom, dict) and "led" in custom).map(lambda custom: custom["led"])


def ask(http: httpx.Client, led: Any) -> httpx.Response:
    body = {"model": "led-embedded", "messages": MESSAGES, "max_tokens": 1, "custom_params": {"led": led}}
    return http.post(PATH, content=json.dumps(body), headers={"content-type": "application/json"})


def as_we_write_it(led: Any) -> Any:
    """A schema lets 8 be written as 8.0, and knows no rule between two keys (both: `config/schema.py`)."""
    if not isinstance(led, dict):
        return led
    written = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in led.items()
    }
    return written | ({"depth": 1} if written.get("latent_offset") == 1 else {})


def test_every_legal_value_is_served(http: httpx.Client, document: dict[str, Any]) -> None:
    requested = []

    @settings(max_examples=80)
    @given(led_values(document, GenerationMode.POSITIVE).map(as_we_write_it))
    def check(led: Any) -> None:
        answer = ask(http, led)
        requested.append(led)
        assert answer.status_code == 200, answer.text

    check()
    assert any(isinstance(led, dict) and len(led) > 3 for led in requested)


def test_every_illegal_value_is_refused(http: httpx.Client, document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(document["components"]["schemas"]["LedParams"])
    requested = []

    @settings(max_examples=200)
    @given(led_values(document, GenerationMode.NEGATIVE).filter(lambda led: not validator.is_valid(led)))
    def check(led: Any) -> None:
        answer = ask(http, led)
        requested.append(led)
        assert answer.status_code == 400 and "led" in answer.text, answer.text

    check()
    assert len(requested) >= 200
    assert http.get("/led/info").json()["counters"]["step_failures"] == 0
