"""One question to the server: retried while it may come back, checked against what was asked."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import openai

from led_sglang.evals.errors import EvalError, NotApplied, ServerGone
from led_sglang.evals.methods import Method

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # each twice the one before
GONE_LIMIT_S = 3.5  # of pauses; a server that does not answer, or answers with an error of its own
BUSY_LIMIT_S = 300.0  # of pauses; a server that has too many requests already
BUSY = (429, 503)  # 503 is SGLang's for a full queue (--max-queued-requests)
# httpcore looks at each connection of a pool, for each of them, whenever a request begins or ends: one pool of 320 cost
# a fifth of a core at twelve answers a second.
CONNECTIONS_A_POOL = 8


@dataclass(frozen=True)
class Asked:
    prompt: str
    method: Method
    temperature: float
    seed: int
    max_tokens: int
    sampling: dict[str, Any]  # top_p, top_k


@dataclass(frozen=True)
class Answer:
    content: str
    reasoning: str
    finish: str | None
    tokens: int
    prompt_tokens: int
    wall_s: float
    applied: dict[str, Any]


class Refused(Exception):
    """The server will not answer this question (HTTP 4xx): too long for its context, for example."""


class Client:
    def __init__(self, base_url: str, api_key: str, model: str | None, timeout_s: float, concurrency: int) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model or ""
        limits = httpx.Limits(max_connections=None)  # the runner's workers are the bound
        certificates = httpx.create_ssl_context()
        pools = [
            openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout_s, verify=certificates)
            for _ in range(-(-concurrency // CONNECTIONS_A_POOL))
        ]
        self._http = pools[0]
        self._apis = [
            openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=api_key,
                timeout=timeout_s,
                max_retries=0,  # retried here, where a dead server can be told from a slow one
                http_client=pool,
            )
            for pool in pools
        ]
        self._turns = itertools.cycle(self._apis)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for api in self._apis:
            await api.close()

    async def find_model(self) -> str:
        """The served model's name. Raises ServerGone."""
        try:
            if not self.model:
                self.model = (await self._apis[0].models.list()).data[0].id
        except (openai.APIError, IndexError) as error:
            raise ServerGone(f"no server at {self.base_url}: {error}") from error
        return self.model

    async def led_info(self) -> dict[str, Any]:
        """Versions and defaults of the server, for the record; empty where it does not tell."""
        try:
            answer = await self._http.get(self.base_url.removesuffix("/v1") + "/led/info")
            found = answer.json() if answer.status_code == 200 else {}
            return found if isinstance(found, dict) else {}
        except (httpx.HTTPError, ValueError):
            return {}

    async def ask(self, asked: Asked) -> Answer:
        """Raises Refused, TimeoutError, ServerGone, NotApplied."""
        pause_s = FIRST_PAUSE_S
        waited_s = {True: 0.0, False: 0.0}  # by whether it was busy: a long queue leaves a crash its own time
        while True:
            try:
                return await self._ask_once(asked)
            except openai.APITimeoutError as error:
                raise TimeoutError(str(error)) from error
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise EvalError(f"the server at {self.base_url} refuses: {error}") from error
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                is_busy = getattr(error, "status_code", None) in BUSY
                if waited_s[is_busy] >= (BUSY_LIMIT_S if is_busy else GONE_LIMIT_S):
                    state = "still has no room for a request" if is_busy else "stopped answering"
                    raise ServerGone(f"the server at {self.base_url} {state}: {error}") from error
            except openai.APIStatusError as error:
                raise Refused(f"HTTP {error.status_code}: {error.message}"[:500]) from error
            await asyncio.sleep(pause_s)
            waited_s[is_busy] += pause_s
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _ask_once(self, asked: Asked) -> Answer:
        started = time.monotonic()
        reply = await next(self._turns).chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": asked.prompt}],
            temperature=asked.temperature,
            top_p=asked.sampling["top_p"],
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            extra_body={
                "top_k": asked.sampling["top_k"],
                "custom_params": asked.method.custom_params(),
                "return_meta_info": True,
            },
        )
        wall_s = time.monotonic() - started
        if not reply.choices:
            raise ServerGone(f"the server at {self.base_url} sent an answer without choices")
        choice = reply.choices[0]
        applied = (getattr(choice, "meta_info", None) or {}).get("led_params")
        if reason := asked.method.mismatch(applied):
            raise NotApplied(f"{asked.method.name}: {reason}")
        usage = reply.usage
        return Answer(
            choice.message.content or "",
            getattr(choice.message, "reasoning_content", None) or "",
            choice.finish_reason,
            usage.completion_tokens if usage else 0,
            usage.prompt_tokens if usage else 0,
            wall_s,
            dict(applied or {}),
        )
