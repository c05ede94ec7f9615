"""An OpenAI-compatible LED server in a thread: answers in an instant, echoes `led_params`, misbehaves on command."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from led_sglang.serving.ports import HeldPort

DEFAULTS = {"depth": 8, "top_k": 8, "latent_norm": False}


def applied_to(led: Any) -> dict[str, Any]:
    if led is False:
        return {"method": "none"}
    return {"method": "led", **DEFAULTS, **(led if isinstance(led, dict) else {})}


TOKEN: dict[str, Any] = {
    "i": 0, "id": 7, "text": " naïve →", "think": True, "explored": True, "depth": 3, "confidence": 0.4,
    "candidates": [[5, " five"], [7, " naïve →"]], "exploit": [0.7, 0.3], "explore": [0.5, 0.5],
}  # fmt: skip


class Door:
    """Notes every request; lets in those with the key, or answers all of them with `refusal`."""

    def __init__(self, app: ASGIApp, server: FakeServer) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, server = Request(scope, receive), self.server
        key = request.headers.get("authorization")
        server.seen.append((request.url.path, key))
        if server.refusal is not None:
            await server.refusal(scope, receive, send)
        elif server.api_key is not None and key != f"Bearer {server.api_key}":
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class FakeServer:
    """`answer(body) -> text` decides what is said; `apply(led) -> led_params` what is echoed."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] = lambda body: "thought</think>It is 1.",
        apply: Callable[[Any], Any] = applied_to,
        die_after: int | None = None,
        status: Callable[[dict[str, Any]], int] = lambda body: 200,
        delay_s: float = 0.0,
        says: Callable[[dict[str, Any]], str] | None = None,
        reply: Any = None,
        api_key: str | None = None,
        refusal: Response | None = None,
        events: tuple[dict[str, Any], ...] = (TOKEN, {"i": 0, "end": "stop", "params": None, "stats": None}),
    ) -> None:
        self.answer, self.apply, self.die_after, self.status = answer, apply, die_after, status
        self.delay_s, self.api_key, self.refusal, self.events = delay_s, api_key, refusal, events
        self.says, self.reply = says, reply  # words of a status that is not 200; a document instead of a completion
        self.seen: list[tuple[str, str | None]] = []  # path and authorization of every request
        self.requested: list[dict[str, Any]] = []  # bodies of /led/stream
        self.bodies: list[dict[str, Any]] = []
        self.port = HeldPort()
        self.url = f"http://127.0.0.1:{self.port.number}/v1"
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/led/info", self.info),
            Route("/led/setup", self.setup),
            Route("/led/stream", self.stream, methods=["POST"]),
        ]
        app = Door(Starlette(routes=routes), self)
        config = uvicorn.Config(app, port=self.port.number, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def info(self, request: Request) -> JSONResponse:
        return JSONResponse({"versions": {"sglang": "0.0.1"}})

    async def setup(self, request: Request) -> JSONResponse:
        return JSONResponse({"model": "fake"})

    async def stream(self, request: Request) -> StreamingResponse:
        self.requested.append(await request.json())
        lines = [f"data: {json.dumps(event)}\n\n" for event in self.events]

        async def sent() -> Any:
            import asyncio

            for line in lines:
                yield line
                await asyncio.sleep(self.delay_s)
            yield "data: [DONE]\n\n"

        return StreamingResponse(sent(), media_type="text/event-stream")

    async def chat(self, request: Request) -> JSONResponse:
        body = await request.json()
        if self.die_after is not None and len(self.bodies) >= self.die_after:
            return JSONResponse({"error": {"message": "scheduler died"}}, 500)
        self.bodies.append(body)
        if self.delay_s:
            import asyncio

            await asyncio.sleep(self.delay_s)
        if (status := self.status(body)) != 200:
            said = self.says(body) if self.says else f"no: {status}"
            return JSONResponse({"error": {"message": said}}, status)
        if self.reply is not None:
            return JSONResponse(self.reply)
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
