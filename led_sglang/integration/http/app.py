"""Our part of SGLang's HTTP app: `metadata.led` is lifted, bad parameters are refused early, /led/info is served."""

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.request import check_custom_params, parse_request, refuse_beams
from led_sglang.config.schema import describing
from led_sglang.config.server import server_config
from led_sglang.inspector.page import route_path
from led_sglang.integration.http import info, inspector, metrics
from led_sglang.integration.http.endpoints import (
    ENDPOINTS,
    GENERATE,
    OPENAI_PATHS,
    OURS,
    RESPONSES,
    TRANSCRIPTIONS,
    VERTEX,
    read_form,
    read_object,
    refuse_misplaced,
    refuse_twice,
)
from led_sglang.integration.http.requests import refuse_mask

NATIVE_PATHS = (GENERATE, VERTEX)
NATIVE = re.compile(rb'""|\[\s*\]|"beam_width"')  # there: prompts that may be empty, and beam searches
ROUTES_OF_VARIABLES = {"ollama_chat": "/api/chat", "ollama_generate": "/api/generate", "vertex_generate": VERTEX}


class LedRequests:
    """Pure ASGI middleware. Bodies without `metadata.led` pass through byte for byte.

    `metadata.led` (a JSON string, for gateways that drop unknown fields) is moved to `custom_params.led`, and
    parameters are checked before a streaming response could begin with status 200.
    """

    def __init__(self, app: ASGIApp, paths: Mapping[str, str] | None = None) -> None:
        """`paths`: under which path the app has the endpoints that `endpoints.ENDPOINTS` knows; as there by default."""
        self.app = app
        self.paths = {path: path for path in ENDPOINTS} if paths is None else paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["method"] in ("POST", "PUT")
        path = self.paths.get(route_path(scope)) if is_asked else None
        if path is None:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        is_ours = OURS.search(body) or (path in NATIVE_PATHS and NATIVE.search(body))
        try:
            changed = rewrite_body(body, path) if is_ours else None
        except LedParamError as error:
            await refusal(error)(scope, _replay(messages, receive), send)
            return
        if changed is not None:
            messages = [{"type": "http.request", "body": changed, "more_body": False}]
            headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        await self.app(scope, _replay(messages, receive), send)


def rewrite_body(body: bytes, path: str) -> bytes | None:
    """The body with LED's parameters where SGLang keeps them; None where nothing changes. Raises LedParamError.

    That is `custom_params.led`, into which `metadata.led` is lifted; on /v1/responses, whose requests have no
    `custom_params`, it is `metadata.led`, from which `requests.add_to_responses` takes it. `path` is one of ENDPOINTS.
    """
    try:
        request = _read_request(body, path)
        return _rewrite(request, path) if isinstance(request, dict) else None
    except RecursionError as error:
        raise LedParamError("the request is nested too deep to be read") from error


def _read_request(body: bytes, path: str) -> Any:
    if path == TRANSCRIPTIONS:
        return read_form(body)
    try:
        return json.loads(body, object_pairs_hook=read_object)
    except ValueError:
        return None  # SGLang's own parser answers


def _rewrite(request: dict[str, Any], path: str) -> bytes | None:
    holders = _holders(request, path)
    for holder in holders:
        if holder.get("custom_params") is not None:
            check_custom_params(holder["custom_params"])
    refuse_misplaced(request, path)
    metadata, is_rewritten = request.get("metadata"), False
    if path in OPENAI_PATHS and isinstance(metadata, dict) and "led" in metadata:
        _move_to_custom_params(request, metadata)
        is_rewritten = True
    if path == GENERATE:
        _refuse_empty(request)
    config = server_config()
    assert config is not None
    masks = request.get("return_sampling_mask")  # of all prompts, or one for each
    for i, holder in enumerate(holders):
        params = parse_request((holder.get("custom_params") or {}).get("led"), config)
        if path in NATIVE_PATHS:
            refuse_beams(holder.get("beam_width"), params)
        refuse_mask(params, (masks[i : i + 1] if len(holders) > 1 else masks) if isinstance(masks, list) else [masks])
    if path == RESPONSES:
        is_rewritten = _move_to_metadata(request)
    return json.dumps(request).encode() if is_rewritten else None


def _move_to_custom_params(request: dict[str, Any], metadata: dict[str, Any]) -> None:
    try:
        value = metadata["led"]
        value = json.loads(value, object_pairs_hook=read_object) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise LedParamError(f"metadata.led must be JSON in a string, got {show(metadata['led'])}") from error
    refuse_twice(value, ("metadata", "led"))
    custom = request.get("custom_params") or {}
    own = custom.get("led")
    if own is not None and value is not None and own != value:
        raise LedParamError("custom_params.led and metadata.led disagree: send one of them")
    request["custom_params"] = {**custom, "led": own if value is None else value}  # null asks for nothing


def _move_to_metadata(request: dict[str, Any]) -> bool:
    """`custom_params.led` as `metadata.led`, which SGLang's responses keep, and echo to the client."""
    custom = request.get("custom_params")
    if not isinstance(custom, dict) or "led" not in custom:
        return False
    metadata = request.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise LedParamError(f"metadata must be an object, got {show(metadata)}")
    request["metadata"] = {**metadata, "led": json.dumps(custom.pop("led"))}
    return True


def _refuse_empty(request: dict[str, Any]) -> None:
    """An empty prompt takes stock SGLang 0.5.23's scheduler down; where it streams, later is too late for a 400."""
    for key in ("text", "input_ids"):
        prompts = request.get(key)
        is_batch = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
        each: list[Any] = prompts if is_batch and isinstance(prompts, list) else [prompts]
        if any(prompt in ("", []) for prompt in each):
            raise LedParamError(f"{key}: the prompt is empty, at least one token is needed")


def _holders(request: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The objects in which `path` reads custom_params; /generate may have one for each prompt."""
    found: list[dict[str, Any]] = [request] if ENDPOINTS[path] else []
    for key in ENDPOINTS[path][0].split(".")[:-2] if found else ():
        values = [holder.get(key) for holder in found]
        each = [item for value in values for item in (value if isinstance(value, list) else [value])]
        found = [item for item in each if isinstance(item, dict)]
    return found


def refusal(error: LedParamError) -> Response:
    """HTTP 400. ASCII only: what is repeated from a request may be no text that UTF-8 can hold."""
    detail = {"object": "error", "message": str(error), "type": "BadRequestError", "param": "led", "code": 400}
    return Response(json.dumps({**detail, "error": detail}), 400, media_type="application/json")


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


def _paths(app: FastAPI) -> dict[str, str]:
    """The app's paths of our ENDPOINTS, three of which SGLang takes from environment variables."""
    paths = {path: path for path in ENDPOINTS}
    for route in app.routes:
        known = ROUTES_OF_VARIABLES.get(getattr(getattr(route, "endpoint", None), "__name__", ""))
        if known is not None:
            paths[route.path] = known  # type: ignore[attr-defined]
    return paths


def attach(app: FastAPI) -> None:
    """Add our routes and middleware to SGLang's app; before it starts serving.

    The middleware goes innermost: behind the API key, so that strangers' bodies are not read, behind decompression,
    so that it sees JSON, and behind CORS, so that a browser may read its refusals.
    """
    app.user_middleware.append(Middleware(LedRequests, paths=_paths(app)))
    inspector.attach(app)
    metrics.attach()
    config = server_config()
    assert config is not None
    app.openapi = describing(app.openapi, config)  # type: ignore[method-assign]

    @app.get("/led/info")
    async def led_info() -> JSONResponse:
        from sglang.srt.entrypoints.http_server import get_global_state

        return JSONResponse(await info.describe(get_global_state().tokenizer_manager))
