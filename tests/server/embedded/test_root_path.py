"""`--fastapi-root-path`: behind a proxy that serves under a prefix, LED is where SGLang is."""

import json
from typing import Any

import httpx
import pytest

from led_sglang.integration.http.endpoints import CHAT, COMPLETIONS, ENDPOINTS, INVOCATIONS, RESPONSES, TRANSCRIPTIONS
from tests.server.api import MODEL, body, counters, growth, message_of
from tests.server.embedded.conftest import ROOT_PATH
from tests.server.servers import Server

pytestmark = pytest.mark.server


@pytest.fixture
def http(spare_server: Server) -> Any:
    with httpx.Client(base_url=spare_server.url, timeout=120, follow_redirects=False) as client:
        yield client


def model_of(http: httpx.Client) -> str:
    """A test that gave the spare server other weights has changed the name, which /v1/responses alone checks."""
    return str(http.get("/v1/models").json()["data"][0]["id"])


def test_the_server_has_a_prefix(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json()["servers"][0]["url"] == ROOT_PATH


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [path for path in ENDPOINTS if path != TRANSCRIPTIONS])
def test_bad_parameters_are_refused(http: httpx.Client, path: str, stream: bool) -> None:
    before = counters(http)
    for requested in ({"custom_params": {"led": {"depth": 99}}}, {"led": True}, {"metadata": {"led": '{"depth": 99}'}}):
        answer = http.post(path, json={"model": MODEL, "messages": [], "stream": stream, **requested})
        assert answer.status_code == 400, (requested, answer.text)
        assert "led" in message_of(answer)
    assert growth(before, counters(http))["requests"] == {}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, INVOCATIONS, RESPONSES])
def test_metadata_is_read(http: httpx.Client, path: str) -> None:
    before = counters(http)
    request = body(CHAT if path == INVOCATIONS else path, max_tokens=4)
    if path == RESPONSES:
        request = {"model": model_of(http), "input": "What is 1 + 3?", "max_output_tokens": 8}
    answer = http.post(path, json={**request, "metadata": {"led": "false"}})
    assert answer.status_code == 200, answer.text
    assert growth(before, counters(http))["requests"] == {"none": 1}


def test_responses_keep_parameters(http: httpx.Client) -> None:
    request = {
        "model": model_of(http),
        "input": "What is 1 + 3?",
        "max_output_tokens": 8,
        "custom_params": {"led": {"depth": 1}},
    }
    assert json.loads(http.post(RESPONSES, json=request).json()["metadata"]["led"]) == {"depth": 1}


def test_leds_own_routes(http: httpx.Client) -> None:
    page = http.get("/led/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert http.get("/led/app.js").headers["content-type"].startswith("text/javascript")
    assert http.get("/led").headers["location"] == "led/", "relative: right under any prefix"
    assert http.get("/led/info").json()["num_layers"] == 12
    assert http.get("/led/setup").status_code == 200
    assert http.post("/led/stream", json={"prompt": "1 +", "sampling": {"max_new_tokens": 1}}).status_code == 200
