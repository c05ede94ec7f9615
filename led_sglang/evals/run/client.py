"""One question to the server: retried after faults that may pass, checked against the requested parameters."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from led_sglang.cli import http_client
from led_sglang.evals.errors import EvalError, NotApplied, ServerGone
from led_sglang.evals.methods import Method

__all__ = ["Answer", "Client", "Query", "Refused"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # each twice the one before
GONE_LIMIT_S = 3.5  # of pauses; a server that does not answer, or answers with an error of its own
BUSY_LIMIT_S = 300.0  # of pauses; a server that has too many requests already
BUSY = (429, 503)  # 503 is SGLang's for a full queue (--max-queued-requests)
# httpcore looks at each connection of a pool, for each of them, whenever a request begins or ends: one pool of 320 cost
# a fifth of a core at twelve answers a second.
CONNECTIONS_A_POOL = 8


@dataclass(frozen=True)
class Query:
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


class Refused(EvalError):
    """The server will not answer this question (HTTP 4xx): too long for its context, for example."""


class Client:
    """Of one server of OpenAI's API; `base_url` ends in its /v1. The key goes with every request."""

    def __init__(
        self, base_url: str, api_key: str | None, model: str | None, timeout_s: float, concurrency: int
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model, self.timeout_s = model or "", timeout_s
        limits = httpx.Limits(max_connections=None)  # the runner's workers are the bound
        certificates = httpx.create_ssl_context()
        self._pools = [
            httpx.AsyncClient(
                headers=http_client.headers(api_key), limits=limits, timeout=timeout_s, verify=certificates
            )
            for _ in range(-(-concurrency // CONNECTIONS_A_POOL))
        ]
        self._turns = itertools.cycle(self._pools)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def find_model(self) -> str:
        """The served model's name; a given one must be listed, or be an adapter (`model:adapter`) of a listed one.

        Raises CommandError.
        """
        url = f"{self.base_url}/models"
        listed = await self._get(url)
        try:
            names = [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise EvalError(f"{url} lists no models: is --base-url right? For SGLang it ends in /v1") from error
        if self.model and not {self.model, self.model.partition(":")[0]} & set(names):
            raise EvalError(f"--model: {self.base_url} does not serve {self.model!r}; it serves {', '.join(names)}")
        if not names:
            raise EvalError(f"{url} lists no models")
        self.model = self.model or names[0]
        return self.model

    async def led_info(self) -> dict[str, Any]:
        """Versions and defaults of the server, for the record; empty where it has no such page. Raises CommandError."""
        try:
            return await self._get(self.base_url.removesuffix("/v1") + "/led/info")
        except http_client.ServerError as error:
            if error.status == 404:
                return {}
            raise

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            return http_client.json_object(http_client.checked(await self._pools[0].get(url)))
        except httpx.HTTPError as error:
            raise ServerGone(str(http_client.no_answer(url, error))) from error

    async def chat(self, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The server's chat completion and the seconds it took. Raises Refused, TimeoutError, ServerGone, EvalError."""
        pause_s = FIRST_PAUSE_S
        waited_s = {True: 0.0, False: 0.0}  # by whether it was busy: a long queue leaves a crash its own time
        while True:
            started = time.monotonic()
            try:
                reply = await self._post(f"{self.base_url}/chat/completions", body)
                return reply, time.monotonic() - started
            except httpx.TimeoutException as error:
                raise TimeoutError(f"no answer from {self.base_url} in {self.timeout_s:g} s") from error
            except httpx.HTTPError as error:
                status, said = None, str(error) or type(error).__name__
            except http_client.ServerError as error:
                status, said = error.status, error.said
                if status is None or status < 400 or status in (401, 403, 404):
                    raise EvalError(str(error)) from error
                if status < 500 and status not in BUSY:
                    raise Refused(said) from error
            is_busy = status in BUSY
            if waited_s[is_busy] >= (BUSY_LIMIT_S if is_busy else GONE_LIMIT_S):
                state = "still has no room for a request" if is_busy else "stopped answering"
                raise ServerGone(f"the server at {self.base_url} {state}: {said}")
            await asyncio.sleep(pause_s)
            waited_s[is_busy] += pause_s
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        return http_client.json_object(http_client.checked(await next(self._turns).post(url, json=body)))

    async def ask(self, requested: Query) -> Answer:
        """Raises Refused, TimeoutError, ServerGone, NotApplied, EvalError."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": requested.prompt}],
            "temperature": requested.temperature,
            "max_tokens": requested.max_tokens,
            "seed": requested.seed,
            **requested.sampling,
            "custom_params": requested.method.custom_params(),
            "return_meta_info": True,
        }
        reply, wall_s = await self.chat(body)
        try:
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            applied = (choice.get("meta_info") or {}).get("led_params")
            message = choice["message"]
            answer = Answer(
                message.get("content") or "",
                message.get("reasoning_content") or "",
                choice.get("finish_reason"),
                usage.get("completion_tokens", 0),
                usage.get("prompt_tokens", 0),
                wall_s,
                dict(applied) if isinstance(applied, dict) else {},
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EvalError(f"{self.base_url} answered with something that is no chat completion: {error!r}") from error
        if reason := requested.method.mismatch(applied):
            raise NotApplied(f"{requested.method.name}: {reason}")
        return answer
