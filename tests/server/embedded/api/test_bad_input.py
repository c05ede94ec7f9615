"""Whatever cannot be honoured is HTTP 400 on every endpoint, streaming or not, and the server lives on."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from led_sglang.config.methods import METHOD_TABLE
from tests.server.api import CHAT, COMPLETIONS, ENDPOINTS, GENERATE, MODEL, body, generate, message_of, messages

pytestmark = pytest.mark.server
LONE = "\ud800"  # half a surrogate pair: JSON can say it, UTF-8 cannot
KEYS = ["method", "depth", "top_k", "phase", "exploit", "latent_norm", "normalize_layers", "latent_offset", "min_p"]

BAD_LED: list[tuple[object, list[str]]] = [
    ({"depht": 8}, ["depht", "depth", "top_k"]),
    ({"": 1}, ["''", "depth"]),
    ({"depth": 0}, ["depth", "0", "[1, 12]"]),
    ({"depth": -1}, ["depth", "-1", "[1, 12]"]),
    ({"depth": 13}, ["depth", "13", "[1, 12]"]),
    ({"depth": True}, ["depth", "True", "[1, 12]"]),
    ({"depth": 2.5}, ["depth", "2.5", "[1, 12]"]),
    ({"depth": "8"}, ["depth", "'8'", "[1, 12]"]),
    ({"depth": None}, ["depth", "None", "[1, 12]"]),
    ({"top_k": 0}, ["top_k", "0", "[1, 256]"]),
    ({"top_k": 10**30}, ["top_k", "1" + "0" * 30, "[1, 256]"]),
    ({"phase": "never"}, ["phase", "never", "think, all"]),
    ({"phase": ["think"]}, ["phase", "think, all"]),
    ({"exploit": 1}, ["exploit", "1", "true or false"]),
    ({"latent_norm": "yes"}, ["latent_norm", "yes", "true or false"]),
    ({"normalize_layers": None}, ["normalize_layers", "None", "true or false"]),
    ({"trace": []}, ["trace", "[]", "true or false"]),
    ({"min_p": -0.1}, ["min_p", "-0.1", "[0, 1]"]),
    ({"min_p": 2}, ["min_p", "2", "[0, 1]"]),
    ({"min_p": float("nan")}, ["min_p", "nan", "[0, 1]"]),
    ({"min_p": "x"}, ["min_p", "x", "[0, 1]"]),
    ({"latent_offset": 2}, ["latent_offset", "2", "[0, 1]"]),
    ({"latent_offset": 1, "depth": 12}, ["latent_offset", "12", "at most 11"]),
    ({"method": "magic"}, ["method", "magic", "led"]),
    ({"method": {"led": {"led": [1, {"a": None}]}}}, ["method", "led"]),
    ({"depth": {"depth": {"depth": 8}}}, ["depth", "[1, 12]"]),
    ([], ["[]", "true, false or an object"]),
    ([{"depth": 3}], ["depth", "true, false or an object"]),
    ("on", ["'on'", "true, false or an object"]),
    (1, ["1", "true, false or an object"]),
    (0, ["0", "true, false or an object"]),
    ("", ["''", "true, false or an object"]),
]


@pytest.fixture(scope="module", autouse=True)
def answering(http: httpx.Client) -> Iterator[None]:
    """After all of it the server still answers, and no step failed."""
    yield
    assert generate(http, {})["meta_info"]["completion_tokens"] > 0
    assert http.get("/led/info").json()["counters"]["step_failures"] == 0


def refused(http: httpx.Client, path: str, request: dict[str, Any]) -> str:
    answer = http.post(path, content=json.dumps(request), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "text/event-stream" not in answer.headers["content-type"]
    return message_of(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(("value", "named"), BAD_LED)
def test_bad_led_values(http: httpx.Client, path: str, value: object, named: list[str], stream: bool) -> None:
    said = refused(http, path, body(path, value, stream=stream))
    for word in named:
        assert word in said


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("custom", ["led", 5, [1], [{"led": True}], {"__led_sglang": {"depth": 3}}])
def test_bad_custom_params(http: httpx.Client, path: str, custom: object, stream: bool) -> None:
    request = body(path, stream=stream)
    (request["sampling_params"] if path == GENERATE else request)["custom_params"] = custom
    assert "custom_params" in refused(http, path, request)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", [{"text": ""}, {"input_ids": []}, {"text": ["1 +", ""]}, {"input_ids": [[5], []]}, {"text": [""]}]
)
@pytest.mark.parametrize("led", [None, False, {"trace": True}])
def test_an_empty_prompt(http: httpx.Client, prompt: dict[str, Any], led: object, stream: bool) -> None:
    request = {**body(GENERATE, led, stream=stream), **prompt}
    if "input_ids" in prompt:
        del request["text"]
    assert "empty" in refused(http, GENERATE, request)
    assert generate(http, False, sampling={"max_new_tokens": 1})["meta_info"]["completion_tokens"] == 1


def test_an_empty_prompt_on_openais_endpoints(http: httpx.Client) -> None:
    for prompt in ("", []):
        assert "empty" in refused(http, COMPLETIONS, {"model": MODEL, "prompt": prompt, "max_tokens": 2})
    assert "empty" in refused(http, CHAT, {"model": MODEL, "messages": [], "max_tokens": 2})


@pytest.mark.parametrize("led", [False, {"trace": True}])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_prompt_longer_than_the_context(http: httpx.Client, path: str, led: object) -> None:
    request = body(path, led)
    long = "1 + " * 3000
    request.update({"messages": messages(long)} if path == CHAT else {"text" if path == GENERATE else "prompt": long})
    said = refused(http, path, request)
    assert "2048" in said or "context" in said


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("led", [None, True, {"depth": 1}])
def test_a_beam_search_cannot_explore(http: httpx.Client, led: object, stream: bool) -> None:
    request = body(GENERATE, led, stream=stream)
    request["sampling_params"]["beam_width"] = 2
    said = refused(http, GENERATE, request)
    assert "beam_width must be 1, got 2" in said
    assert "custom_params.led false" in said, "what to do on a server whose default is LED"


@pytest.mark.parametrize("led", [False, {"method": "none"}])
def test_a_beam_search_runs_with_led_off_beside_requests_that_explore(http: httpx.Client, led: object) -> None:
    plain, seeded = {"temperature": 0}, {"sampling_seed": 5, "max_new_tokens": 40}
    expected = generate(http, {"trace": True}, sampling=seeded)
    with ThreadPoolExecutor(4) as pool:
        beams = [pool.submit(generate, http, led, sampling={**plain, "beam_width": 3, "n": 2}) for _ in range(2)]
        beside = [pool.submit(generate, http, {"trace": True}, sampling=seeded) for _ in range(2)]
        first, second = ([one["text"] for one in beam.result()["meta_info"]["beam_results"]] for beam in beams)
        assert first == second
        assert len(set(first)) == 2, "the two best beams"
        for one in beside:
            assert one.result()["text"] == expected["text"]
            assert one.result()["meta_info"]["led_candidates"] == expected["meta_info"]["led_candidates"]


@pytest.mark.parametrize("value", [LONE, {LONE: LONE}, [LONE], {"led": {LONE: {"depth": [LONE]}}}])
@pytest.mark.parametrize("key", ["prompt", "messages", "sampling", "led", "seed", "side", "n", LONE])
def test_the_inspector_refuses_what_no_encoding_can_hold(http: httpx.Client, key: str, value: object) -> None:
    requested: dict[str, Any] = {"prompt": "1 +", "sampling": {"max_new_tokens": 1}, key: value}
    answer = http.post("/led/stream", content=json.dumps(requested))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("key", ["prompt", "messages", "sampling", "led", "seed", "side", "n", "other"])
def test_the_inspector_refuses_what_is_nested_too_deep(http: httpx.Client, key: str) -> None:
    for depth in (50, 120, 300, 800, 950, 100_000):
        for start, end in (("[", "]"), ('{"role":', "}")):
            nested = start * depth + "1" + end * depth
            body = f'{{"{key}": {nested}, "{"messages" if key == "prompt" else "prompt"}": "1 +"}}'
            assert http.post("/led/stream", content=body).status_code == 400, (depth, start)


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop": "é"},
        {"stop": 5},
        {"stop": [5]},
        {"max_new_tokens": "x"},
        {"max_new_tokens": 10**30},
        {"temperature": "x"},
        {"temperature": None, "top_p": {}},
        {"regex": "("},
        {"regex": 5},
        {"logit_bias": {"5": "x"}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": [1]},
        {"stop_token_ids": ["x"]},
        {"stream_interval": "x"},
        {"top_k": 1.5},
        {"beam_width": 3},
        {"is_normalized": True},
        {"led": {"depth": 3}},
    ],
    ids=str,
)
def test_the_inspector_outlives_any_sampling_parameters(http: httpx.Client, sampling: dict[str, Any]) -> None:
    answer = http.post(
        "/led/stream", content=json.dumps({"prompt": "1 +", "sampling": {"max_new_tokens": 2, **sampling}})
    )
    assert answer.status_code in (200, 400), answer.text
    assert generate(http, False, sampling={"max_new_tokens": 1})["meta_info"]["completion_tokens"] == 1


@pytest.mark.parametrize("method", [name for name, row in METHOD_TABLE.items() if not row.is_always_enabled])
def test_a_method_that_is_not_enabled(http: httpx.Client, method: str) -> None:
    said = refused(http, GENERATE, body(GENERATE, {"method": method}))
    assert f"'{method}' is not enabled" in said
    assert f"--led-methods led,{method}" in said
    assert http.get("/led/info").json()["methods"] == ["none", "led"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_json_that_nobody_can_read(http: httpx.Client, path: str) -> None:
    nested = b"[" * 100_000 + b"]" * 100_000
    raw = (
        b'{"led": ',
        b'\xff\xfe"led"',
        b'{"custom_params": {"led": ' + nested + b"}}",
        b'{"metadata": {"led": ' + nested + b"}}",
        b'{"sampling_params": {"custom_params": {"led": {"depth": ' + b"9" * 5000 + b"}}}}",
    )
    for content in raw:
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (content[:60], answer.text)


TEXT = st.text(max_size=6) | st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=3)  # no encoding holds Cs
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["think", "led"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@given(
    value=JUNK | st.dictionaries(st.sampled_from([*KEYS, "trace", "topk"]), JUNK, min_size=1, max_size=3),
    path=st.sampled_from(ENDPOINTS),
    stream=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_junk_is_answered_or_refused(http: httpx.Client, value: object, path: str, stream: bool) -> None:
    request = json.dumps(body(path, value, max_tokens=1, stream=stream))
    answer = http.post(path, content=request, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert "custom_params.led" in message_of(answer)
    else:
        assert '"error"' not in answer.text
