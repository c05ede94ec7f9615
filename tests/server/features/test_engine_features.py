"""The engine's other features with LED on. JSON, regex, logprobs, biases, stops: tests/server/embedded/api."""

import json
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

from led_sglang.embedded import MODEL_DIR
from led_sglang.testing import Reply, check_trace
from tests.server.api import CHAT, DEFAULTS, MODEL, counters, events, growth, messages, without_spaces
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Oracle, Request, check, thinking_prompt, words

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def embedded() -> Oracle:
    return Oracle(MODEL_DIR)


def ask(http: httpx.Client, request: Request, **more: Any) -> Reply:
    answer = http.post("/generate", json={**request.body(), **more})
    assert answer.status_code == 200, answer.text
    return Reply(request, answer.json())


@pytest.mark.parametrize("led", [False, {"trace": True}])
def test_hidden_states_are_the_models_last(http: httpx.Client, embedded: Oracle, led: object) -> None:
    """Not the captured layers: one state a token, after the final norm, whatever LED keeps for itself."""
    reply = ask(http, Request(thinking_prompt(7), num_tokens=6, led=led), return_hidden_states=True)
    states = reply.meta["hidden_states"]
    reported = torch.tensor([state[-1] if isinstance(state[0], list) else state for state in states])  # (T, H)
    ids = torch.tensor([reply.request.prompt_ids + reply.output_ids])
    with torch.no_grad():
        expected = embedded.model.model(input_ids=ids).last_hidden_state[0, -7:-1]
    torch.testing.assert_close(reported.double(), expected, atol=1e-3, rtol=1e-3)


def test_led_reads_the_layers_of_the_adapter(http: httpx.Client, embedded: Oracle, adapted: Oracle) -> None:
    requests = [Request(thinking_prompt(seed), num_tokens=12, seed=seed) for seed in (1, 2)]
    for request in requests:
        check(adapted, ask(http, request, lora_path="tiny"))
        plain = ask(http, request)
        check(embedded, plain)
        assert adapted.compare(plain).faults, "the adapter changes nothing: nothing is tested"


def test_rows_with_and_without_the_adapter_share_a_batch(http: httpx.Client, embedded: Oracle, adapted: Oracle) -> None:
    requests = [Request(thinking_prompt(seed), num_tokens=12, seed=seed) for seed in range(3, 7)]
    bodies = [request.body() for request in requests]
    answer = http.post(
        "/generate",
        json={
            "input_ids": [body["input_ids"] for body in bodies],
            "sampling_params": [body["sampling_params"] for body in bodies],
            "lora_path": ["tiny", None, "tiny", None],
        },
    )
    assert answer.status_code == 200, answer.text
    replies = [Reply(request, document) for request, document in zip(requests, answer.json(), strict=True)]
    check(adapted, replies[0], replies[2])
    check(embedded, replies[1], replies[3])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_session_goes_on_in_the_thought_it_left(http: httpx.Client, embedded: Oracle, streaming: bool) -> None:
    """The second turn sends its own ids only; LED knows the phase from all of them."""
    opened = http.post("/open_session", json={"capacity_of_str_len": 1000, "streaming": streaming})
    session = {"id": opened.json()}
    first = ask(http, Request(thinking_prompt(3), num_tokens=10), session_params=session)
    check(embedded, first)
    before, added = first.request.prompt_ids + first.output_ids, words(9, 4)
    if not streaming:
        session["rid"] = first.meta["id"]
    for ids, is_thinking in ((added, CLOSE_ID not in first.output_ids), ([*added, CLOSE_ID, *added], False)):
        whole = Request(before + ids, num_tokens=8)
        body = {**whole.body(), "input_ids": ids, "session_params": session}
        reply = Reply(whole, http.post("/generate", json=body).json())
        check(embedded, reply)
        assert reply.meta["prompt_tokens"] == len(whole.prompt_ids)
        assert reply.meta["led_think"][0] is is_thinking
        before = whole.prompt_ids + reply.output_ids
        if not streaming:
            session["rid"] = reply.meta["id"]
    assert http.post("/close_session", json={"session_id": session["id"]}).status_code == 200


@pytest.mark.parametrize("budget", [5, 12])
def test_a_thinking_budget_ends_the_thought(http: httpx.Client, budget: int) -> None:
    """--enable-strict-thinking's own, which masks all tokens but </think>; no pickled logit processor is needed."""
    request = {
        "model": MODEL,
        "messages": messages(),
        "max_tokens": budget + 8,
        "seed": 1,
        "return_meta_info": True,
        "custom_params": {"thinking_budget": budget, "led": {"trace": True}},
    }
    meta = http.post(CHAT, json=request).json()["choices"][0]["meta_info"]
    check_trace(meta)
    assert meta["led_think"] == [True] * (budget + 1) + [False] * 7, "the budget and </think>, then the answer"
    last = [(p, token) for p, token in zip(meta["led_exploit"][budget], meta["led_candidates"][budget], strict=True)]
    assert max(last) == (pytest.approx(1.0), CLOSE_ID)


def test_tool_calls_come_after_the_thought(openai: OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    answer: Any = openai.chat.completions.create(
        model=MODEL,
        messages=messages("What is 1 + 3?"),
        max_tokens=120,
        seed=1,
        tools=[{"type": "function", "function": {"name": "add", "strict": True, "parameters": parameters}}],
        tool_choice="required",
        logit_bias=without_spaces(),  # else the arguments may begin with newlines for ever
        extra_body={
            "custom_params": {"thinking_budget": 10, "led": {"trace": True}},
            "return_meta_info": True,
        },
    )
    choice = answer.choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "add"
    arguments = json.loads(call.function.arguments)
    assert arguments["a"] in (1, 2) and arguments["b"] in (3, 4)
    check_trace(choice.meta_info)
    assert choice.meta_info["led_stats"]["led_tokens"] == 11


@pytest.mark.parametrize("stream", [False, True])
def test_responses(http: httpx.Client, stream: bool) -> None:
    """No meta_info there: what was applied shows in the counters, and the echoed metadata says what was asked."""
    before = counters(http)
    sent = {"model": MODEL, "input": "What is 1 + 3?", "max_output_tokens": 24, "stream": stream}
    for extra in ({"custom_params": {"led": {"depth": 1}}}, {"metadata": {"led": '{"depth": 1}', "team": "a"}}):
        answer = http.post("/v1/responses", json={**sent, **extra})
        assert answer.status_code == 200, answer.text
        if not stream:
            assert json.loads(answer.json()["metadata"]["led"]) == {"depth": 1}
        else:
            assert [event["type"] for event in events(iter(answer.text.splitlines()))][-1].startswith("response.")
    http.post("/v1/responses", json={**sent, "custom_params": {"led": False}})
    grown = growth(before, counters(http))
    assert grown["requests"] == {"led": 2, "none": 1}
    assert grown["led_tokens"] > 0
    assert set(grown["depth_histogram"]) <= {"1"}, "depth 1 was asked for and applied"
    refused = http.post("/v1/responses", json={**sent, "custom_params": {"led": {"depth": 13}}})
    assert refused.status_code == 400


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
def test_protocols_without_a_place_for_parameters_use_the_default(http: httpx.Client, path: str) -> None:
    before = counters(http)
    sent = {"model": MODEL, "messages": messages(), "max_tokens": 8, "stream": False}
    assert http.post(path, json={**sent, "custom_params": {"led": {"depth": 3}}}).status_code == 400
    options = {"options": {"num_predict": 8}} if path == "/api/chat" else {}
    assert http.post(path, json={**sent, **options}).status_code == 200
    assert growth(before, counters(http))["requests"] == {"led": 1}


def test_vertex_and_sagemaker_routes(http: httpx.Client) -> None:
    sampling = {"max_new_tokens": 4, "custom_params": {"led": {"depth": 3}}}
    sent = {"instances": [{"input_ids": [5, OPEN_ID]}], "parameters": {"sampling_params": sampling}}
    [prediction] = http.post("/vertex_generate", json=sent).json()["predictions"]
    assert prediction["meta_info"]["led_params"] == {**DEFAULTS, "depth": 3}
    chat = {"model": MODEL, "messages": messages(), "max_tokens": 4, "return_meta_info": True}
    answer = http.post("/invocations", json={**chat, "metadata": {"led": '{"depth": 3}'}})
    assert answer.json()["choices"][0]["meta_info"]["led_params"] == {**DEFAULTS, "depth": 3}
