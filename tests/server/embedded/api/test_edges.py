"""Requests at the edge of what is legal, and clients that leave in the middle."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from led_sglang.testing import check_trace
from tests.server.api import (
    CHAT,
    COMPLETIONS,
    ENDPOINTS,
    GENERATE,
    MODEL,
    body,
    events,
    generate,
    joined,
    messages,
    thinking_prompt,
    wait_idle,
)

pytestmark = pytest.mark.server


def running_requests(http: httpx.Client) -> float:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("sglang:num_running_reqs{")]
    assert lines, "the server was not started with --enable-metrics"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("led", [False, {"trace": True}])
def test_empty_content(openai: OpenAI, led: object) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=messages(""), max_tokens=8, extra_body={"custom_params": {"led": led}}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_one_token(http: httpx.Client, path: str, stream: bool) -> None:
    before = http.get("/led/info").json()["counters"]["led_tokens"]
    answer = http.post(path, json=body(path, {"trace": True}, 1, stream=stream))
    assert answer.status_code == 200
    assert http.get("/led/info").json()["counters"]["led_tokens"] == before + 1


@pytest.mark.parametrize("led", [False, {"trace": True}])
def test_no_token_at_all(http: httpx.Client, led: object) -> None:
    """SGLang takes it for "prefill only", but for completions, where it is illegal."""
    meta = generate(http, led, sampling={"max_new_tokens": 0})["meta_info"]
    assert meta["completion_tokens"] == 0
    assert meta["led_params"]["method"] == ("led" if led else "none")
    if led:
        check_trace(meta)
    assert http.post(CHAT, json=body(CHAT, led, 0)).status_code == 200
    assert http.post(COMPLETIONS, json=body(COMPLETIONS, led, 0)).status_code == 400


def test_a_prompt_that_fills_the_context_but_for_a_few(http: httpx.Client) -> None:
    request = body(GENERATE, {"phase": "all", "trace": True}, 7)
    del request["text"]
    request["input_ids"] = [5] * 2040
    request["sampling_params"]["ignore_eos"] = True
    meta = http.post(GENERATE, json=request).json()["meta_info"]
    assert 0 < meta["completion_tokens"] <= 7, "SGLang keeps a slot or two back"
    assert meta["finish_reason"]["type"] == "length"
    check_trace(meta)
    request["sampling_params"]["max_new_tokens"] = 64
    assert http.post(GENERATE, json=request).status_code == 400


def test_ignore_eos_and_min_tokens(http: httpx.Client) -> None:
    meta = generate(http, {"trace": True}, sampling={"ignore_eos": True, "max_new_tokens": 120})["meta_info"]
    assert meta["completion_tokens"] == 120
    check_trace(meta)
    meta = generate(http, {"trace": True}, sampling={"min_new_tokens": 60, "max_new_tokens": 61})["meta_info"]
    assert meta["completion_tokens"] >= 60
    check_trace(meta)


async def test_clients_that_leave_in_mid_stream(http: httpx.Client, async_openai: AsyncOpenAI) -> None:
    settings: dict[str, Any] = {"max_tokens": 1500, "stream": True, "temperature": 1.0}

    async def leave(i: int) -> None:
        led = [False, {"trace": True}, {"phase": "all"}, {}][i % 4]
        extra = {"custom_params": {"led": led}, "ignore_eos": True}
        stream = await async_openai.chat.completions.create(
            model=MODEL, messages=messages(f"What is {i} + {i}?"), extra_body=extra, **settings
        )
        seen = 0
        async for _ in stream:
            seen += 1
            if seen > i % 5:
                break
        await stream.close()

    await asyncio.gather(*(leave(i) for i in range(16)))
    await asyncio.to_thread(wait_idle, http)
    assert running_requests(http) == 0
    check_trace(generate(http, {"trace": True}, text=thinking_prompt())["meta_info"])
    assert http.get("/led/info").json()["counters"]["step_failures"] == 0


def test_aborted_by_id(http: httpx.Client) -> None:
    request = body(GENERATE, {"trace": True, "phase": "all"}, 1500, stream=True, rid="led-abort-me")
    request["sampling_params"]["ignore_eos"] = True
    with http.stream("POST", GENERATE, json=request) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        assert http.post("/abort_request", json={"rid": "led-abort-me"}).status_code == 200
        [whole] = joined(events(iter([first, *lines])))
    assert whole["meta_info"]["finish_reason"]["type"] == "abort"
    check_trace(whole["meta_info"])
    wait_idle(http)
    assert running_requests(http) == 0
