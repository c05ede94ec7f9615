"""The inspector: its page at /led/, and POST /led/stream, which sends one token with its trace per event.

    {"messages": [...] or "prompt": "...", "sampling": {...}, "led": {...}, "seed": 1, "side": "led", "n": 1}

`sampling` is SGLang's `sampling_params`. Side "plain" is depth 1: the same candidates and the same noise as side "led",
so that the two texts agree until exploration parts them. Sample i of n uses seed + i. A token's `at` is when the server
had it, in milliseconds since it took the request: a reader who falls behind still sees the server's own speed.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sglang.srt.managers.io_struct import GenerateReqInput
from starlette.responses import Response

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.request import parse_request
from led_sglang.config.server import server_config
from led_sglang.inspector.page import Page

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from transformers import PreTrainedTokenizerBase

MAX_SAMPLES = 8
KEYS = ("messages", "prompt", "sampling", "led", "seed", "side", "n")
SIDES = ("led", "plain")
PER_TOKEN = ("think", "explored", "depth", "confidence", "entropy", "logprob", "exploit", "explore", "depth_entropy")
EXAMPLES = (
    "How many r are in the word strawberry?",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Which is larger, 9.11 or 9.9?",
)


@dataclass(frozen=True)
class StreamRequest:
    """A checked body of /led/stream."""

    messages: list[dict[str, Any]] | None
    prompt: str | None
    sampling: dict[str, Any]
    led: dict[str, Any]
    seed: int
    n: int

    @classmethod
    def of(cls, body: bytes) -> "StreamRequest":
        """Raises LedParamError."""
        try:
            requested = json.loads(body)
            json.dumps(requested, ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
        except (ValueError, RecursionError) as error:
            raise LedParamError("the body must be a JSON object in UTF-8") from error
        if not isinstance(requested, dict) or any(key not in KEYS for key in requested):
            raise LedParamError(f"the body must be a JSON object with keys among {', '.join(KEYS)}")
        seed, n, side = requested.get("seed"), requested.get("n", 1), requested.get("side", "led")
        seed = secrets.randbits(31) if seed is None else seed
        _require(type(seed) is int and 0 <= seed < 1 << 62, "seed", "an integer in [0, 2^62)", seed)
        _require(type(n) is int and 1 <= n <= MAX_SAMPLES, "n", f"an integer in [1, {MAX_SAMPLES}]", n)
        _require(side in SIDES, "side", "one of " + ", ".join(SIDES), side)
        messages, prompt, sampling = requested.get("messages"), requested.get("prompt"), requested.get("sampling") or {}
        _require((messages is None) != (prompt is None), "messages or prompt", "exactly one of the two", None)
        _require(prompt is None or isinstance(prompt, str), "prompt", "a string", prompt)
        _require(messages is None or _are_messages(messages), "messages", "a list of {role, content}", messages)
        ours = ("custom_params", "n", "sampling_seed")
        _require(isinstance(sampling, dict) and not set(ours) & set(sampling), "sampling", f"without {ours}", sampling)
        _check_sampling(sampling)
        return cls(messages, prompt, sampling, _led(requested.get("led"), side), seed, n)


def _require(is_right: bool, name: str, what: str, value: object) -> None:
    if not is_right:
        raise LedParamError(f"{name} must be {what}, got {show(value)}")


def _check_sampling(sampling: dict[str, Any]) -> None:
    """What SGLang's /generate refuses before it makes a request of it: values of a wrong type stop its scheduler."""
    try:
        from sglang.srt.entrypoints.api_contract import generate_contract_error
    except ImportError:  # releases that do not check
        return
    said = generate_contract_error({"input_ids": [0], "sampling_params": sampling})
    if said is not None:
        raise LedParamError(f"sampling: {said}")


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _led(value: object, side: str) -> dict[str, Any]:
    requested = {} if value in (None, True) else value
    if not isinstance(requested, dict) or requested.get("method", "led") != "led":
        raise LedParamError(f"led must be true or an object of method led, got {show(value)}")
    led = {**requested, "trace": True}
    if side == "plain":
        led.update(depth=1, latent_offset=0, exploit=True)
    config = server_config()
    assert config is not None
    parse_request(led, config)
    return led


class Pieces:
    """Incremental detokenisation: `push` returns what a token adds to the text, "" inside a split character."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = 0  # decoded from here: enough context for spaces to come out right
        self.read = 0  # text of the ids before this one was returned

    def push(self, token_id: int) -> str:
        self.ids.append(token_id)
        before = self._decode(self.ids[self.start : self.read])
        now = self._decode(self.ids[self.start :])
        if now.endswith("�") and len(self.ids) - self.read < 4:
            return ""
        self.start, self.read = self.read, len(self.ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


class Prompt:
    """What one tokenizer tells: the ids of a prompt and the text of a token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if tokenizer is None:
            raise LedParamError("this server runs without a tokenizer (--skip-tokenizer-init): nothing to show")
        self.tokenizer = tokenizer
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self.text = lru_cache(1 << 16)(lambda token_id: str(tokenizer.decode([token_id], skip_special_tokens=False)))

    def ids(self, request: StreamRequest) -> list[int]:
        if request.prompt is not None:
            return list(self.tokenizer.encode(request.prompt))
        try:
            text = self.tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs: they raise what they like
            raise LedParamError(f"the chat template refused the messages: {error}") from error
        return list(self.tokenizer.encode(text, add_special_tokens=False))


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
    """Run sample i of an StreamRequest, put its events, then None; whatever ends this ends the request too."""
    sampling = {**request.sampling, "sampling_seed": request.seed + i, "custom_params": {"led": request.led}}
    rid = f"led-{secrets.token_hex(12)}"
    request = GenerateReqInput(input_ids=list(ids), sampling_params=sampling, stream=True, rid=rid)
    pieces, answer = Pieces(prompt.tokenizer), None
    seen: list[int] = []
    start = time.monotonic()
    try:
        async with aclosing(manager.generate_request(request)) as answers:
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
        values = meta.get("led_" + key) or ()
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
    """What the page needs to know before its first run."""
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
