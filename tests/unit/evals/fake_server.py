"""An OpenAI-compatible server in a thread: answers in an instant, echoes `led_params`, and can misbehave on command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from led_sglang.ports import HeldPort

DEFAULTS = {"depth": 8, "top_k": 8, "latent_norm": False}


def applied_to(led: Any) -> dict[str, Any]:
    if led is False:
        return {"method": "none"}
    return {"method": "led", **DEFAULTS, **(led if isinstance(led, dict) else {})}


class FakeServer:
    """`answer(body) -> text` decides what is said; `apply(led) -> led_params` what is echoed."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] = lambda body: "thought</think>It is 1.",
        apply: Callable[[Any], Any] = applied_to,
        die_after: int | None = None,
        status: Callable[[dict[str, Any]], int] = lambda body: 200,
        delay_s: float = 0.0,
    ) -> None:
        self.answer, self.apply, self.die_after, self.status = answer, apply, die_after, status
        self.delay_s = delay_s
        self.bodies: list[dict[str, Any]] = []
        self.port = HeldPort()
        self.url = f"http://127.0.0.1:{self.port.number}/v1"
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/led/info", self.info),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=self.port.number, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def info(self, request: Request) -> JSONResponse:
        return JSONResponse({"versions": {"sglang": "0.0.1"}})

    async def chat(self, request: Request) -> JSONResponse:
        body = await request.json()
        if self.die_after is not None and len(self.bodies) >= self.die_after:
            return JSONResponse({"error": {"message": "scheduler died"}}, 500)
        self.bodies.append(body)
        if self.delay_s:
            import asyncio

            await asyncio.sleep(self.delay_s)
        if (status := self.status(body)) != 200:
            return JSONResponse({"error": {"message": f"no: {status}"}}, status)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self.answer(body)},
            "meta_info": {"led_params": self.apply(body["custom_params"]["led"])},
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        document = {"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice]}
        return JSONResponse({**document, "usage": usage})

    def __enter__(self) -> FakeServer:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.port.release()
