"""Parameters are honoured where the documentation says; what looks like LED's in any other place is refused by name."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import KEYS
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config
from led_sglang.integration.http import app as http
from led_sglang.integration.http.app import LedRequests, rewrite_body
from led_sglang.integration.http.endpoints import (
    CHAT,
    COMPLETIONS,
    ENDPOINTS,
    GENERATE,
    INVOCATIONS,
    OURS,
    RESPONSES,
    TRANSCRIPTIONS,
    VERTEX,
    read_object,
    refuse_misplaced,
)
from led_sglang.wire import RESOLVED_KEY

OPENAI = (CHAT, COMPLETIONS, INVOCATIONS, RESPONSES)
JSON_PATHS = [path for path in ENDPOINTS if path != TRANSCRIPTIONS]
# docs/api.md, said a second time
LEGAL: dict[str, list[tuple[str | int, ...]]] = {
    **{path: [("custom_params", "led"), ("metadata", "led")] for path in OPENAI},
    GENERATE: [("sampling_params", "custom_params", "led"), ("sampling_params", 1, "custom_params", "led")],
    VERTEX: [("parameters", *rest, "custom_params", "led") for rest in (("sampling_params",), ("sampling_params", 1))],
}
HOLDERS: list[tuple[str | int, ...]] = [
    (),
    ("custom_params",),
    ("customParams",),
    ("CUSTOM_PARAMS",),
    ("custom_params", 1),
    ("metadata",),
    ("metadata", 0),
    ("extra_body",),
    ("extra_body", "custom_params"),
    ("extra_body", "extra_body", "metadata"),
    ("extra_args",),
    ("sampling_params",),
    ("sampling_params", "custom_params"),
    ("sampling_params", 1, "custom_params"),
    ("samplingParams", "custom_params"),
    ("parameters",),
    ("parameters", "custom_params"),
    ("parameters", "sampling_params", "custom_params"),
    ("parameters", "sampling_params", 1, "custom_params"),
    ("instances", 0),
    ("instances", 1, "sampling_params", "custom_params"),
    ("options",),
    ("options", "custom_params"),
    ("chat_template_kwargs",),
    ("session_params",),
]
SPELLINGS = [
    "led",
    "LED",
    "Led",
    "_led",
    "led_params",
    "led_depth",
    "led.top_k",
    "--led-phase",
    "LED_METHOD",
    "custom_params.led",
    "custom_params.led.depth",
    "led_sglang",
]
OTHERS = ["ledger", "led_zeppelin", "called", "sled", "led by", "leds", "LEDs", "depth", "custom", "settled", "top_k"]


@pytest.fixture(autouse=True, scope="module")
def served() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CONFIG, "")
        export_config(ServerConfig(num_layers=12, max_depth=12, open_ids=(5,), close_ids=(6,)))
        yield


def within(holder: tuple[str | int, ...], inner: Any) -> Any:
    for key in reversed(holder):
        inner = [*({} for _ in range(key)), inner] if isinstance(key, int) else {key: inner}
    return inner


def shown(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def requested(body: bytes, path: str) -> str:
    """What LED says of a body: "" if it goes on to SGLang. Only what the middleware looks into is looked into."""
    try:
        if OURS.search(body):
            rewrite_body(body, path)
    except LedParamError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("holder", HOLDERS, ids=shown)
def test_every_spelling_in_every_place(path: str, holder: tuple[str | int, ...]) -> None:
    is_refused_anyway = holder == ("custom_params", 1) and path in OPENAI
    for spelling in SPELLINGS:
        place = (*holder, spelling)
        for value in (True, {"depth": 3}, "{}" if holder == ("metadata",) else {}):
            said = requested(json.dumps({"model": "m", **within(holder, {spelling: value})}).encode(), path)
            if place in LEGAL.get(path, []):
                assert said == ""
            elif is_refused_anyway:
                assert "custom_params must be an object" in said
            else:
                assert said.startswith(f"{shown(place)}: "), said
                assert ("custom_params.led" if path in LEGAL else "has no place") in said and path in said
        assert requested(json.dumps(within(holder, {spelling: None})).encode(), path) == "" or is_refused_anyway


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("written", [r"\u006ced", r"l\u0065d", r"\u004C\u0045\u0044", r"le\u0064"])
def test_an_escaped_key_is_the_key(path: str, written: str) -> None:
    for holder in HOLDERS:
        body = json.dumps(within(holder, {"KEY": {"depth": 99}})).replace("KEY", written).encode()
        assert requested(body, path) != "", "misplaced, or out of range where it is read"


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_other_encodings_of_json(path: str, encoding: str) -> None:
    for holder in HOLDERS:
        body = json.dumps(within(holder, {"led": {"depth": 99}})).encode(encoding)
        assert requested(body, path) != ""


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("holder", [holder for holder in HOLDERS if holder[-1:] == ("custom_params",)], ids=shown)
def test_a_parameter_one_level_too_high(path: str, holder: tuple[str | int, ...]) -> None:
    for key in KEYS:
        body = within(holder, {key: 1, "other": 2})
        said = requested(json.dumps(body).encode(), path)
        assert said.startswith(f"{shown((*holder, key))}: "), said
        wrapped = body["parameters"] if holder[0] == "parameters" else body
        wrapped["custom_logit_processor"] = "x"
        assert requested(json.dumps(body).encode(), path) == "", "a logit processor's own"


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("holder", ["metadata", "extra_body", "sampling_params", "options"])
def test_an_object_that_was_written_into_a_string(path: str, holder: str) -> None:
    for inner in ({"led": True}, {"custom_params": {"led": {"depth": 3}}}):
        said = requested(json.dumps({holder: json.dumps(inner)}).encode(), path)
        assert said.startswith(f"{holder} (a string).")


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("depth", [100, 700, 950, 990, 5000])
def test_nesting_of_any_depth_is_read_or_refused(path: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for text in (
        '{"custom_params": {"led": %s}}',
        '{"metadata": {"led": "true"}, "x": %s}',
        '{"extra_body": {"led": %s}}',
    ):
        for name in ("custom_params", "metadata", "x"):
            requested((text % nested).replace('"x"', json.dumps(name)).encode(), path)  # raises nothing else


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b'{"custom_params": {"led": {"depth": 3}}, "custom_params": {}}',
        b'{"extra_body": {"custom_params": {"led": true}}, "extra_body": {"led": null}}',
        b'{"led": true, "led": null}',
        b'{"custom_params": {"led": {"depth": 3, "depth": 4}}}',
        b'{"sampling_params": {"custom_params": {"led": {"depth": 2}, "led": null}}}',
    ],
)
def test_a_key_that_stands_twice(path: str, body: bytes) -> None:
    assert "stands twice" in requested(body, path)


SCHEMA = {"type": "object", "properties": {"led": {"type": "boolean"}, "depth": {"type": "integer"}}, "led": True}
THEIRS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": '{"led": true}', "led": True, "metadata": {"led": "x"}}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "custom_params": {"led": 5}}]}]},
    {"tools": [{"type": "function", "function": {"name": "led", "parameters": SCHEMA}}]},
    {"tools": [{"name": "switch", "input_schema": SCHEMA}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "led", "schema": SCHEMA}}},
    {"text": {"format": {"type": "json_schema", "name": "led", "schema": SCHEMA}}},
    {"sampling_params": {"json_schema": json.dumps(SCHEMA), "regex": "led", "stop": ["led"]}},
    {"input": [{"role": "user", "content": "led", "led": 1}], "format": SCHEMA, "led_strip": 1},
    {"logit_bias": {"led": 1}, "user": "led", "model": "led"},
    *({holder: {key: 1}} for holder in ("metadata", "options", "chat_template_kwargs", "extra_body") for key in OTHERS),
    {"custom_params": {"thinking_budget": 5, "__sglang_reasoning_in_grammar": True, "ledger": 1}},
]


@pytest.mark.parametrize("path", JSON_PATHS)
def test_what_is_the_clients_own_is_not_searched(path: str) -> None:
    for body in THEIRS:
        assert rewrite_body(json.dumps(body).encode(), path) is None


def test_forms_have_no_place_for_parameters() -> None:
    file = b'--x\r\ncontent-disposition: form-data; name="file"; filename="led"\r\n\r\n"led" \0 {"led": 1}\r\n'
    part = file + b'--x\r\ncontent-disposition: form-data; name="%s"\r\ncontent-type: text/plain\r\n\r\n%s\r\n--x--'
    custom = b'{"led": true}', b'{"depth": 3}', b'{"metadata": {"LED": 1}}'
    for name, value in ((b"led", b"true"), (b"LED_depth", b"3"), *((b"custom_params", value) for value in custom)):
        assert TRANSCRIPTIONS in requested(part % (name, value), TRANSCRIPTIONS)
    for name, value in (
        (b"prompt", b'{"led": true}'),
        (b"metadata", b"{}"),
        (b"custom_params", b"{}"),
        (b"model", b"led"),
    ):
        assert requested(part % (name, value), TRANSCRIPTIONS) == ""


KEY = st.sampled_from([*SPELLINGS, *OTHERS, *KEYS, RESOLVED_KEY, "custom_params", "custom-Params", "__customparam"])
HOLDER = KEY | st.sampled_from(["metadata", "extra_body", "sampling_params", "parameters", "options", "instances"])
TREE = st.recursive(
    st.none() | st.booleans() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(HOLDER, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(HOLDER, TREE, max_size=4), st.sampled_from(JSON_PATHS), st.booleans())
def test_what_the_search_finds_is_looked_into(request: dict[str, Any], path: str, is_ascii: bool) -> None:
    """The regular expression that spares other bodies a parse misses nothing."""
    try:
        refuse_misplaced(request, path)
    except LedParamError:
        assert OURS.search(json.dumps(request, ensure_ascii=is_ascii).encode())


def test_other_bodies_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "rewrite_body", None)
    client = TestClient(LedRequests(answering(FastAPI())))
    sent = {
        "messages": [{"content": 'LED, sled, called: 你 \u00e9 "led by" failed'}],
        "metadata": {},
        "custom": "params",
    }
    for path in ENDPOINTS:
        assert client.post(path, content=json.dumps(sent)).text == "reached"


def test_many_keys_and_one_twice() -> None:
    pairs = [(str(i), i) for i in range(200_000)]
    assert read_object([*pairs, ("0", 1)]) == {**dict(pairs), "0": 1}


def answering(app: FastAPI) -> FastAPI:
    async def reached(request: Request) -> Any:
        await request.body()
        return http.Response("reached")

    for path in ENDPOINTS:
        app.add_api_route(path, reached, methods=["POST", "PUT"])
    return app


def served_at(app: ASGIApp, root_path: str) -> ASGIApp:
    """What uvicorn makes of --root-path: it stands in front of the path, and is told beside it."""

    async def with_root(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": root_path, "path": root_path + scope["path"]}, receive, send)

    return with_root


@pytest.mark.parametrize("root_path", ["", "/llm", "/a/b", "/llm/", "/v1", "/generate"])
@pytest.mark.parametrize("path", JSON_PATHS)
def test_a_request_that_reaches_an_endpoint_was_looked_at(path: str, root_path: str) -> None:
    app = answering(FastAPI())
    app.add_middleware(LedRequests)
    client = TestClient(served_at(app, root_path), root_path="")
    body = json.dumps(within(LEGAL[path][0] if path in LEGAL else ("led",), {"depth": 99}))
    escaped = path[:-1] + f"%{ord(path[-1]):02X}"
    for written in (path, escaped, path + "/", "/" + path, path.replace("/", "//"), path.upper(), "/llm" + path):
        for method in ("POST", "PUT"):
            answer = client.request(method, written, content=body)
            assert answer.text != "reached", (root_path, written)
            assert written not in (path, escaped) or answer.status_code == 400
    assert client.post(path, content="{}").text == "reached"


def test_paths_that_variables_set_are_known() -> None:
    app = FastAPI()

    @app.post("/ollama/chat")
    async def ollama_chat() -> str:
        return "reached"

    @app.post("/predict")
    async def vertex_generate() -> str:
        return "reached"

    app.add_middleware(LedRequests, paths=http._paths(app))
    client = TestClient(app)
    for path in ("/ollama/chat", "/predict"):
        assert client.post(path, json={"led": True}).status_code == 400
        assert client.post(path, json={}).json() == "reached"
