"""A closed-loop load of openai clients: each sends its next request as soon as the last one is answered."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
import psutil

from led_sglang.cli import http_client


@dataclass
class Window:
    """What the clients saw between `start` and `end` (seconds, monotonic clock)."""

    start: float
    end: float
    token_times: int = 0
    all_tokens: int = 0  # those of the warm-up and the end too
    cpu_s: float = 0.0  # of the server while all of them came
    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def add_token(self, now: float, previous: float | None, sent: float) -> None:
        self.all_tokens += 1
        if not self.start <= now < self.end:
            return
        self.token_times += 1
        if previous is None:
            self.first_token_s.append(now - sent)
        else:
            self.gaps_s.append(now - previous)

    @property
    def tokens_per_s(self) -> float:
        return self.token_times / (self.end - self.start)

    @property
    def tokens_per_cpu_s(self) -> float:
        """Tokens a CPU second of the server's processes: other work on the machine disturbs it less than the rate."""
        return self.all_tokens / self.cpu_s


def cpu_seconds(pid: int) -> float:
    """Of a process and its children so far."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(t.user + t.system for t in times)


async def _client(
    api: openai.AsyncOpenAI, prompts: "itertools.count[int]", texts: Sequence[str], window: Window, body: dict[str, Any]
) -> None:
    while time.monotonic() < window.end:
        text = texts[next(prompts) % len(texts)]
        sent, previous = time.monotonic(), None
        stream = await api.chat.completions.create(
            model="default", messages=[{"role": "user", "content": text}], stream=True, **body
        )
        async with stream:
            async for chunk in stream:
                delta = chunk.choices[0].delta if chunk.choices else None
                if delta is None or not (delta.content or getattr(delta, "reasoning_content", None)):
                    continue
                now = time.monotonic()
                window.add_token(now, previous, sent)
                previous = now
                if now >= window.end:
                    break


async def run_window(
    url: str,
    texts: Sequence[str],
    concurrency: int,
    seconds: float,
    warm_s: float,
    body: dict[str, Any],
    offset: int = 0,
) -> Window:
    """Load `url` with `concurrency` clients for `warm_s + seconds`; only the last `seconds` count. Raises ServerError.

    One streamed chunk is one token: the servers stream every token.
    """
    api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)
    start = time.monotonic() + warm_s
    window = Window(start, start + seconds)
    prompts = itertools.count(offset)
    try:
        async with api:
            await asyncio.gather(*(_client(api, prompts, texts, window, body) for _ in range(concurrency)))
    except openai.APIStatusError as error:
        raise http_client.refusal(error.response) from error
    except openai.APIError as error:
        raise http_client.ServerError(f"no answer from {url}: {error}") from error
    return window
