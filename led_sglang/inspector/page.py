"""Serves the page's static files; imports nothing of SGLang."""

from starlette._utils import get_route_path
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from led_sglang.inspector import TYPES, read

__all__ = ["Page", "route_path"]

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
HEADERS = {
    "content-security-policy": POLICY + "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Page:
    """In front of everything, SGLang's key check included: the page is public, its data are not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _static(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        await (self.app if response is None else response)(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path that the router goes by: without `--fastapi-root-path`, which the server puts before every path."""
    return get_route_path(scope)


def _static(scope: Scope) -> Response | None:
    path = route_path(scope)
    if path == "/led":
        return RedirectResponse("led/", 307)  # relative: right behind a proxy that adds a prefix
    name = path.removeprefix("/led/") or "index.html"
    if not path.startswith("/led/") or name not in TYPES:
        return None
    body = read(name) if scope["method"] == "GET" else b""
    return Response(body, headers={**HEADERS, "content-type": TYPES[name]})
