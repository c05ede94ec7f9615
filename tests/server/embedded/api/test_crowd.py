"""64 clients at once, LED on, off and traced, streaming or not: each is answered with its own parameters."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from led_sglang.testing import check_trace
from tests.server.api import (
    DEFAULTS,
    GENERATE,
    MODEL,
    TRACE_KEYS,
    body,
    counters,
    events,
    growth,
    joined,
    messages,
    wait_idle,
)

pytestmark = pytest.mark.server
NUM_CLIENTS = 64


def led_of(i: int) -> Any:
    """Off, on, traced, everywhere: four kinds, and the traced ones each with a depth and k of their own."""
    kinds: list[Any] = [False, True, {"trace": True, "depth": 1 + i % 12, "top_k": 1 + i % 9}, {"phase": "all"}]
    return kinds[(i // 4) % 4]


def expected(led: Any) -> dict[str, Any]:
    return {"method": "none"} if led is False else {**DEFAULTS, **(led if isinstance(led, dict) else {})}


async def chat(client: AsyncOpenAI, i: int) -> dict[str, Any] | None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=messages(f"What is {i} + 3?"),
        max_tokens=16 + i % 16,
        extra_body={"custom_params": {"led": led_of(i)}, "return_meta_info": True},
    )
    return answer.choices[0].meta_info  # type: ignore[attr-defined, no-any-return]


async def chat_stream(client: AsyncOpenAI, i: int) -> dict[str, Any] | None:
    """SGLang gives no meta_info in a chat stream: only the text can be checked."""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=messages(f"What is {i} + 3?"),
        max_tokens=16 + i % 16,
        stream=True,
        extra_body={"custom_params": {"led": led_of(i)}},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    return None


async def plain_generate(client: httpx.AsyncClient, i: int) -> dict[str, Any]:
    answer = await client.post(GENERATE, json=body(GENERATE, led_of(i), 16 + i % 16))
    assert answer.status_code == 200, answer.text
    return answer.json()["meta_info"]


async def generate_stream(client: httpx.AsyncClient, i: int) -> dict[str, Any]:
    async with client.stream("POST", GENERATE, json=body(GENERATE, led_of(i), 16 + i % 16, stream=True)) as answer:
        lines = [line async for line in answer.aiter_lines()]
    [whole] = joined(events(iter(lines)))
    return whole["meta_info"]


async def test_each_of_64_clients_gets_its_own(
    http: httpx.Client, async_openai: AsyncOpenAI, async_http: httpx.AsyncClient
) -> None:
    wait_idle(http)
    before = counters(http)
    askers = (chat, chat_stream, plain_generate, generate_stream)

    async def one(i: int) -> dict[str, Any] | None:
        client: Any = (async_openai, async_openai, async_http, async_http)[i % 4]
        return await askers[i % 4](client, i)

    metas = await asyncio.gather(*(one(i) for i in range(NUM_CLIENTS)))
    for i, meta in enumerate(metas):
        if meta is None:
            assert i % 4 == 1
            continue
        led = led_of(i)
        assert meta["led_params"] == expected(led), i
        assert meta["completion_tokens"] <= 16 + i % 16
        if isinstance(led, dict) and led.get("trace"):
            check_trace(meta)
        else:
            assert not set(TRACE_KEYS) & set(meta), i
        if led == {"phase": "all"}:
            assert meta["led_stats"]["led_tokens"] == meta["completion_tokens"]
    wait_idle(http)
    grown = growth(before, counters(http))
    assert grown["requests"] == {"led": 48, "none": 16}
    assert grown["fallbacks"] == grown["step_failures"] == 0
    reported = sum(meta["led_stats"]["led_tokens"] for meta in metas if meta and "led_stats" in meta)
    assert grown["led_tokens"] > reported > 0, "the streamed chats had LED tokens too"
