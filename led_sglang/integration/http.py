"""Our part of SGLang's HTTP app: `metadata.led` is lifted, bad parameters are refused early, /led/info is served."""

import json
import re
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from led_sglang.integration import info, inspector, metrics
from led_sglang.integration.requests import refuse_mask
from led_sglang.params import LedParamError, check_custom_params, parse_request, server_config
from led_sglang.schema import describing

RESPONSES = "/v1/responses"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/invocations", RESPONSES)
DEAF_PATHS = ("/v1/messages", "/api/chat", "/api/generate")  # SGLang drops what these protocols do not know
PATHS = (*OPENAI_PATHS, *DEAF_PATHS, "/generate", "/vertex_generate")
OURS = re.compile(rb'"led"|"custom_params"|"metadata"|""|\[\s*\]')  # bodies that `lift` has to look into


class LedRequests:
    """Pure ASGI middleware. Bodies without `metadata.led` pass through byte for byte.

    `metadata.led` (a JSON string, for gateways that drop unknown fields) is moved to `custom_params.led`, and
    parameters are checked before a streaming response could begin with status 200.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        try:
            changed = lift(body, scope["path"]) if OURS.search(body) else None
        except LedParamError as error:
            await _refuse(error)(scope, _replay(messages, receive), send)
            return
        if changed is not None:
            messages = [{"type": "http.request", "body": changed, "more_body": False}]
            headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        await self.app(scope, _replay(messages, receive), send)


def lift(body: bytes, path: str) -> bytes | None:
    """The body with LED's parameters where SGLang keeps them; None where nothing changes. Raises LedParamError.

    That is `custom_params.led`, into which `metadata.led` is lifted; on /v1/responses, whose requests have no
    `custom_params`, it is `metadata.led`, from which `requests.add_to_responses` takes it.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return None  # SGLang's own parser answers
    except RecursionError as error:
        raise LedParamError("the request is nested too deep to be read") from error
    if not isinstance(request, dict):
        return None
    if path in DEAF_PATHS:
        _refuse_deaf(request, path)
        return None
    metadata = request.get("metadata")
    is_lifted = False
    if isinstance(metadata, dict) and "led" in metadata and path in OPENAI_PATHS:
        _lift_into(request, metadata)
        is_lifted = True
    if path == "/generate":
        _refuse_empty(request)
    config = server_config()
    assert config is not None
    for custom in _custom_params(request):
        check_custom_params(custom)
        refuse_mask(parse_request(custom.get("led"), config), request.get("return_sampling_mask"))
    if path == RESPONSES:
        is_lifted = _sink_into_metadata(request)
    return json.dumps(request).encode() if is_lifted else None


def _lift_into(request: dict[str, Any], metadata: dict[str, Any]) -> None:
    try:
        value = json.loads(metadata["led"]) if isinstance(metadata["led"], str) else metadata["led"]
    except (ValueError, RecursionError) as error:
        raise LedParamError(f"metadata.led must be JSON in a string, got {metadata['led']!r:.80}") from error
    custom = request.get("custom_params") or {}
    if not isinstance(custom, dict):
        return
    if "led" in custom and custom["led"] != value:
        raise LedParamError("custom_params.led and metadata.led disagree: send one of them")
    request["custom_params"] = {**custom, "led": value}


def _sink_into_metadata(request: dict[str, Any]) -> bool:
    """`custom_params.led` as `metadata.led`, which SGLang's responses keep, and echo to the client."""
    custom = request.get("custom_params")
    if not isinstance(custom, dict) or "led" not in custom:
        return False
    request["metadata"] = {**(request.get("metadata") or {}), "led": json.dumps(custom.pop("led"))}
    return True


def _refuse_deaf(request: dict[str, Any], path: str) -> None:
    """Nothing a client asks for is dropped without a word."""
    for key in ("custom_params", "metadata"):
        holder = request.get(key)
        if isinstance(holder, dict) and "led" in holder:
            raise LedParamError(
                f"{key}.led: SGLang's {path} has no place for it, so the server's default (--led) holds there; use "
                f"/v1/chat/completions, /v1/completions, {RESPONSES} or /generate"
            )


def _refuse_empty(request: dict[str, Any]) -> None:
    """An empty prompt takes stock SGLang 0.5.23's scheduler down; where it streams, later is too late for a 400."""
    for key in ("text", "input_ids"):
        prompts = request.get(key)
        is_batch = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
        each: list[Any] = prompts if is_batch and isinstance(prompts, list) else [prompts]
        if any(prompt in ("", []) for prompt in each):
            raise LedParamError(f"{key}: the prompt is empty, at least one token is needed")


def _custom_params(request: dict[str, Any]) -> list[Any]:
    parameters = request.get("parameters")  # /vertex_generate wraps a /generate
    sampling = (parameters if isinstance(parameters, dict) else request).get("sampling_params")
    holders = [request, *(sampling if isinstance(sampling, list) else [sampling])]
    customs = [holder.get("custom_params") for holder in holders if isinstance(holder, dict)]
    return [custom for custom in customs if custom is not None]


def _refuse(error: LedParamError) -> JSONResponse:
    detail = {"object": "error", "message": str(error), "type": "BadRequestError", "param": "led", "code": 400}
    return JSONResponse({**detail, "error": detail}, status_code=400)


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages, b"".join(m.get("body", b"") for m in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    pending = list(messages)

    async def next_message() -> Message:
        return pending.pop(0) if pending else await receive()

    return next_message


def attach(app: FastAPI) -> None:
    """Add our routes and middleware to SGLang's app; before it starts serving.

    The middleware goes innermost: behind the API key, so that strangers' bodies are not read, behind decompression,
    so that it sees JSON, and behind CORS, so that a browser may read its refusals.
    """
    app.user_middleware.append(Middleware(LedRequests))
    inspector.attach(app)
    metrics.attach()
    config = server_config()
    assert config is not None
    app.openapi = describing(app.openapi, config)  # type: ignore[method-assign]

    @app.get("/led/info")
    async def led_info() -> JSONResponse:
        from sglang.srt.entrypoints.http_server import get_global_state

        return JSONResponse(await info.describe(get_global_state().tokenizer_manager))
