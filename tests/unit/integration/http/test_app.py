"""The middleware: lifts `metadata.led`, refuses before SGLang sees a request, and leaves all else alone."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config
from led_sglang.integration.http.app import LedRequests, rewrite_body
from led_sglang.integration.http.endpoints import CHAT, COMPLETIONS, ENDPOINTS, GENERATE, INVOCATIONS, RESPONSES, VERTEX
from led_sglang.wire import RESOLVED_KEY


@pytest.fixture(autouse=True, scope="module")
def served() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CONFIG, "")
        export_config(ServerConfig(num_layers=12, max_depth=12, open_ids=(5,), close_ids=(6,)))
        yield


class Echo:
    """A tiny app that answers with the body it was given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        self.headers = dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def client(echo: Echo) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(LedRequests(echo))
    async with httpx.AsyncClient(transport=transport, base_url="http://led") as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        b'{ "model":"m",\t"messages" : [ ] }',
        b'{"custom_params": {"other": true}, "n": 1.0}',
        b'{"metadata": {"other": "1"}}',
        b'{"metadata": null, "custom_params": null}',
        b'{"metadata": "x"}',
        b'"led"',
        b'["led"]',
        b'{"led": ',
        b"\xff\xfe led",
        b"",
    ],
)
@pytest.mark.parametrize("path", [*ENDPOINTS, "/elsewhere"])
async def test_what_needs_no_lifting_passes_byte_for_byte(
    client: httpx.AsyncClient, echo: Echo, body: bytes, path: str
):
    answer = await client.post(path, content=body)
    assert answer.status_code == 200
    assert echo.bodies == [body]
    assert answer.content == body


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, INVOCATIONS])
@pytest.mark.parametrize("led", [True, False, None, {}, {"depth": 3, "trace": True}])
async def test_metadata_is_moved(client: httpx.AsyncClient, echo: Echo, path: str, led: object) -> None:
    sent = {"model": "m", "metadata": {"led": json.dumps(led), "user": "u"}, "custom_params": {"other": 1}}
    answer = await client.post(path, json=sent)
    assert answer.json() == {**sent, "custom_params": {"other": 1, "led": led}}
    assert int(echo.headers[b"content-length"]) == len(echo.bodies[0])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"custom_params": {"led": true}, "n": 1.0}'),
        (COMPLETIONS, b'{"custom_params": {"led": true}, "n": 1.0, "beam_width": 2}'),
        (GENERATE, b'{"sampling_params": {"custom_params":{"led": true}}, "n": 1.0}'),
        (GENERATE, b'{"sampling_params": [{}, {"custom_params":{"led": true}}], "n": 1.0}'),
        (GENERATE, b'{"sampling_params": {"beam_width":3,"custom_params":{"led":false}}, "n": 1.0}'),
        (GENERATE, b'{"sampling_params": {"beam_width": 1}, "n": 1.0}'),
        (VERTEX, b'{"parameters": {"sampling_params": {"custom_params":{"led": true}}}, "n": 1.0}'),
    ],
)
async def test_custom_params_pass_byte_for_byte(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    for method in ("POST", "PUT"):
        assert (await client.request(method, path, content=body)).content == body


@pytest.mark.parametrize("custom", [{"led": {"depth": 3}}, {"led": {"depth": 3}, "other": 1}, None])
async def test_responses_carry_it_in_metadata(client: httpx.AsyncClient, custom: dict[str, Any] | None) -> None:
    """SGLang's ResponsesRequest has no custom_params; it has metadata, and echoes it."""
    for metadata in (None, {"user": "u"}, {"led": '{"depth": 3}'}):
        sent = {"input": "a", "custom_params": custom, "metadata": metadata}
        after = (await client.post(RESPONSES, json=sent)).json()
        if custom is None and "led" not in (metadata or {}):
            assert after == sent
            continue
        assert json.loads(after["metadata"]["led"]) == {"depth": 3}
        assert after["metadata"].get("user") == (metadata or {}).get("user")
        assert "led" not in (after["custom_params"] or {})


async def test_metadata_may_be_moved_into_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"metadata": {"led": '{"depth": 2}'}, "custom_params": None})
    assert answer.json()["custom_params"] == {"led": {"depth": 2}}


async def test_the_same_in_both_places_is_no_conflict(client: httpx.AsyncClient) -> None:
    sent = {"metadata": {"led": '{"depth": 2}'}, "custom_params": {"led": {"depth": 2}}}
    assert (await client.post(CHAT, json=sent)).json()["custom_params"] == {"led": {"depth": 2}}


@pytest.mark.parametrize(
    ("custom", "metadata", "expected"),
    [(None, '{"depth": 4}', {"depth": 4}), ({"depth": 4}, None, {"depth": 4}), ({"depth": 4}, "null", {"depth": 4})],
)
async def test_null_asks_for_nothing(
    client: httpx.AsyncClient, custom: object, metadata: object, expected: object
) -> None:
    body = {"custom_params": {"led": custom}, "metadata": {"led": metadata}}
    assert (await client.post(CHAT, json=body)).json()["custom_params"]["led"] == expected


async def test_a_body_in_pieces_is_read_whole(client: httpx.AsyncClient, echo: Echo) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"metadata": {"l', b'ed": "{\\"dep', b'th\\": 2}"}}'):
            yield piece

    answer = await client.post(CHAT, content=pieces())
    assert answer.json()["custom_params"] == {"led": {"depth": 2}}


REFUSED = [
    (CHAT, {"custom_params": {"led": {"depth": 0}}}, ["depth", "0", "[1, 12]"]),
    (CHAT, {"metadata": {"led": '{"depth": 0}'}}, ["depth", "0", "[1, 12]"]),
    (CHAT, {"metadata": {"led": "{depth: 3}"}}, ["metadata.led", "JSON", "{depth: 3}"]),
    (CHAT, {"metadata": {"led": "true"}, "custom_params": {"led": False}}, ["custom_params.led", "metadata.led"]),
    (CHAT, {"metadata": {"led": "[" * 50000}}, ["metadata.led"]),
    (CHAT, {"custom_params": [1]}, ["custom_params", "[1]", "object"]),
    (CHAT, {"custom_params": "led"}, ["custom_params", "'led'", "object"]),
    (COMPLETIONS, {"custom_params": {RESOLVED_KEY: {}}}, [RESOLVED_KEY, "reserved"]),
    (GENERATE, {"text": "a", "sampling_params": {"custom_params": {"led": {"top_k": 0}}}}, ["top_k", "0"]),
    (GENERATE, {"text": ["a"], "sampling_params": [{}, {"custom_params": {"led": 3}}]}, ["led", "3"]),
    (GENERATE, {"text": "a", "sampling_params": {"custom_params": 5}}, ["custom_params", "5", "object"]),
    (RESPONSES, {"custom_params": {"led": {"depth": 0}}}, ["depth", "0", "[1, 12]"]),
    (RESPONSES, {"metadata": {"led": '{"depth": 0}'}}, ["depth", "0", "[1, 12]"]),
    ("/v1/messages", {"custom_params": {"led": True}}, ["custom_params.led", "/v1/messages", "/v1/chat/completions"]),
    ("/v1/messages", {"metadata": {"led": "true"}}, ["metadata.led", "/v1/messages"]),
    ("/api/chat", {"custom_params": {"led": True}}, ["custom_params.led", "/api/chat"]),
    (RESPONSES, {"custom_params": {"led": True}, "metadata": "x"}, ["metadata must be an object", "'x'"]),
    (RESPONSES, {"custom_params": {"led": True}, "metadata": [["led", "true"]]}, ["metadata must be an object"]),
    (VERTEX, {"parameters": {"sampling_params": {"custom_params": {"led": {"top_k": 0}}}}}, ["top_k"]),
    (
        GENERATE,
        {"text": "a", "sampling_params": {"beam_width": 2}},
        ["beam_width must be 1, got 2", "custom_params.led false"],
    ),
    (GENERATE, {"text": ["a"], "sampling_params": [{"beam_width": 2, "custom_params": {"led": {}}}]}, ["beam_width"]),
    (VERTEX, {"parameters": {"sampling_params": {"beam_width": 2}}}, ["beam_width"]),
    (GENERATE, {"text": ""}, ["text", "empty"]),
    (GENERATE, {"text": ["a", ""]}, ["text", "empty"]),
    (GENERATE, {"input_ids": []}, ["input_ids", "empty"]),
    (GENERATE, {"input_ids": [[1], []]}, ["input_ids", "empty"]),
]


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(("path", "body", "named"), REFUSED)
async def test_refused_with_400_before_sglang_sees_it(
    client: httpx.AsyncClient, echo: Echo, path: str, body: dict[str, Any], named: list[str], method: str
) -> None:
    answer = await client.request(method, path, json=body)
    assert answer.status_code == 400
    assert echo.bodies == []
    for word in named:
        assert word in answer.json()["message"]
    assert answer.json()["error"]["message"] == answer.json()["message"], "where openai's and SGLang's clients look"


async def test_json_nested_too_deep_is_refused(client: httpx.AsyncClient, echo: Echo) -> None:
    body = b'{"custom_params": {"led": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    answer = await client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert "nested" in answer.json()["message"]


LONE = "\ud800"  # half a surrogate pair: JSON can say it, UTF-8 cannot


@pytest.mark.parametrize(
    "body",
    [
        {"custom_params": {"led": LONE}},
        {"custom_params": {"led": {LONE: 1}}},
        {"custom_params": {"led": {"phase": LONE}}},
        {"custom_params": {"led": {"depth": {LONE: [LONE]}}}},
        {"custom_params": LONE},
        {"metadata": {"led": LONE}},
        {"metadata": {"led": f'{{"{LONE}": 1}}'}},
        {"metadata": LONE, "custom_params": {"led": {"method": LONE}}},
        {"extra_body": {"led": LONE}},
    ],
)
async def test_words_that_no_encoding_can_hold_are_refused_like_others(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await client.post(CHAT, content=json.dumps(body))
    assert answer.status_code == 400
    assert "led" in answer.json()["message"] or "custom_params" in answer.json()["message"]


async def test_other_methods_and_websockets_pass(client: httpx.AsyncClient) -> None:
    assert (await client.get(CHAT)).status_code == 200
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await LedRequests(app)({"type": "websocket", "path": CHAT}, None, None)  # type: ignore[arg-type]
    assert seen == ["websocket"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["led", "metadata", "custom_params", "sampling_params", "text", "depth", "top_k", RESOLVED_KEY]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(list(ENDPOINTS)))
def test_any_json_is_moved_left_or_refused(value: object, path: str) -> None:
    try:
        changed = rewrite_body(json.dumps(value).encode(), path)
    except LedParamError:
        return
    if changed is None:
        return
    assert isinstance(value, dict)
    after = json.loads(changed)
    moved = ("custom_params", "metadata") if path == RESPONSES else ("custom_params",)
    assert {k: v for k, v in after.items() if k not in moved} == {k: v for k, v in value.items() if k not in moved}


@given(st.binary(max_size=40))
def test_any_bytes_are_left_alone(body: bytes) -> None:
    assert rewrite_body(body, CHAT) is None
