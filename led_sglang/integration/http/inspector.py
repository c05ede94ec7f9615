"""The inspector: its page at /led/, and POST /led/stream, which sends one token with its trace per event.

    {"messages": [...] or "prompt": "...", "sampling": {...}, "led": {...}, "seed": 1, "side": "led", "n": 1}

`sampling` is SGLang's `sampling_params`. Side "plain" is depth 1: the same candidates and the same noise as side "led",
so that the two texts agree until exploration parts them. Sample i of n uses seed + i. A token's `at` is when the server
had it, in milliseconds since it took the request: a slow reader still sees the server's own speed.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sglang.srt.managers.io_struct import GenerateReqInput
from starlette.responses import Response

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import server_config
from led_sglang.inspector.page import Page
from led_sglang.inspector.request import MAX_SAMPLES, StreamRequest
from led_sglang.inspector.text import Pieces, Prompt
from led_sglang.wire import TRACE_KEYS

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

__all__ = ["attach", "setup", "stream"]

PREFIX = "led_"
PER_TOKEN = tuple(key.removeprefix(PREFIX) for key in TRACE_KEYS if key != "led_candidates")
EXAMPLES = (
    "How many r are in the word strawberry?",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Which is larger, 9.11 or 9.9?",
)


def _check_sampling(sampling: dict[str, Any]) -> None:
    """Raises LedParamError for what SGLang's /generate refuses in front of its scheduler, which a wrong type stops."""
    try:
        from sglang.srt.entrypoints.api_contract import generate_contract_error
    except ImportError:  # releases that do not check
        return
    said = generate_contract_error({"input_ids": [0], "sampling_params": sampling})
    if said is not None:
        raise LedParamError(f"sampling: {said}")


_prompts: dict[int, Prompt] = {}


def _prompt(manager: "TokenizerManager") -> Prompt:
    key = id(manager.tokenizer)
    if key not in _prompts:
        _prompts[key] = Prompt(manager.tokenizer)
    return _prompts[key]


async def _sample(
    manager: "TokenizerManager",
    prompt: Prompt,
    request: StreamRequest,
    ids: list[int],
    i: int,
    events: "asyncio.Queue[Any]",
) -> None:
    """Run sample i of the request and put its events, then None; whatever ends this ends the request too."""
    sampling = {**request.sampling, "sampling_seed": request.seed + i, "custom_params": {"led": request.led}}
    rid = f"led-{secrets.token_hex(12)}"
    generation = GenerateReqInput(input_ids=list(ids), sampling_params=sampling, stream=True, rid=rid)
    pieces, answer = Pieces(prompt.tokenizer), None
    seen: list[int] = []
    start = time.monotonic()
    try:
        async with aclosing(manager.generate_request(generation)) as answers:
            async for answer in answers:
                new = answer["output_ids"]
                new = new if manager.incremental_streaming_output else new[len(seen) :]
                at = round(1000 * (time.monotonic() - start), 1)
                for index, token_id in enumerate(new):
                    token = _token(prompt, pieces, answer["meta_info"], i, index, token_id)
                    events.put_nowait({**token, "at": at})
                seen.extend(new)
        meta = answer["meta_info"] if answer else {}
        finish = (meta.get("finish_reason") or {}).get("type")
        events.put_nowait({"i": i, "end": finish, "params": meta.get("led_params"), "stats": meta.get("led_stats")})
    except Exception as error:
        events.put_nowait({"i": i, "error": str(error) or type(error).__name__})
    finally:
        manager.abort_request(rid)  # nothing where it has finished
        events.put_nowait(None)


def _token(prompt: Prompt, pieces: Pieces, meta: dict[str, Any], i: int, index: int, token_id: int) -> dict[str, Any]:
    """The event of token `index` of a chunk."""

    def column(key: str) -> Any:
        values = meta.get(PREFIX + key) or ()
        return values[index] if index < len(values) else None

    candidates = column("candidates")
    return {
        "i": i,
        "id": token_id,
        "text": pieces.push(token_id),
        **({"special": True} if token_id in prompt.special else {}),
        **{key: column(key) for key in PER_TOKEN},
        "candidates": [[c, prompt.text(c)] for c in candidates] if candidates else None,
    }


async def _events(
    manager: "TokenizerManager", prompt: Prompt, request: StreamRequest, ids: list[int]
) -> AsyncIterator[dict[str, Any]]:
    events: asyncio.Queue[Any] = asyncio.Queue()
    tasks = [asyncio.create_task(_sample(manager, prompt, request, ids, i, events)) for i in range(request.n)]
    num_running = len(tasks)
    try:
        while num_running:
            event = await events.get()
            if event is None:
                num_running -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async with aclosing(rest):  # type: ignore[type-var]
        yield _line(first)
        async for event in rest:
            yield _line(event)
        yield b"data: [DONE]\n\n"


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=True).encode() + b"\n\n"


def _refuse(message: str) -> Response:
    """ASCII only: what a chat template says may be no text that UTF-8 can hold."""
    detail = {"error": {"message": message, "type": "BadRequestError", "code": 400}}
    return Response(json.dumps(detail), 400, media_type="application/json")


async def stream(manager: "TokenizerManager", body: bytes) -> Response:
    """The answer of POST /led/stream."""
    try:
        request = StreamRequest.of(body)
        _check_sampling(request.sampling)
        prompt = _prompt(manager)
        ids = prompt.ids(request)
    except (LedParamError, RecursionError) as error:
        return _refuse(str(error))
    events = _events(manager, prompt, request, ids)
    first = await anext(events)
    if "error" in first:
        await events.aclose()  # type: ignore[attr-defined]
        return _refuse(first["error"])
    head = {"prompt_tokens": len(ids), "seed": request.seed, "n": request.n}
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_lines({**first, **head}, events), media_type="text/event-stream", headers=headers)


def setup(manager: "TokenizerManager") -> dict[str, Any]:
    """The document of GET /led/setup: the model, defaults, limits and examples of the page."""
    config = server_config()
    assert config is not None
    from led_sglang import embedded

    examples = list(EXAMPLES)
    if str(manager.model_path) == str(embedded.MODEL_DIR):
        from led_sglang.embedded.tasks import TASK_NAMES, generate

        examples = [problem.question for task in TASK_NAMES for problem in generate(task, "held_out", 2, seed=2)]
    return {
        "model": manager.served_model_name,
        "context": manager.context_len,
        "defaults": {"depth": config.depth, "top_k": config.top_k, "phase": config.phase, "temperature": 0.6},
        "limits": {"depth": config.max_depth, "top_k": config.max_top_k, "n": MAX_SAMPLES},
        "markers": [config.think_open, config.think_close],
        "examples": examples,
    }


def attach(app: FastAPI) -> None:
    """Add the inspector to SGLang's app; before it starts serving."""
    from sglang.srt.entrypoints import http_server

    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Page(build())  # type: ignore[method-assign]

    def manager() -> Any:
        return http_server.get_global_state().tokenizer_manager

    @app.get("/led/setup")
    async def led_setup() -> JSONResponse:
        return JSONResponse(setup(manager()))

    @app.post("/led/stream")
    async def led_stream(request: Request) -> Response:
        return await stream(manager(), await request.body())
