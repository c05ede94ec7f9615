"""The commands' HTTP: every request carries the key, every error the server's own words."""

from __future__ import annotations

import re
from typing import Any

import httpx

from led_sglang.cli.endings import CommandError

__all__ = [
    "ServerError",
    "checked",
    "checked_stream",
    "get",
    "get_object",
    "headers",
    "json_object",
    "no_answer",
    "post",
    "refusal",
]

MAX_MESSAGE_CHARS = 500


class ServerError(CommandError):
    """A server that refused, or (`status` is None) did not answer; `said` holds the server's words alone."""

    def __init__(self, message: str, status: int | None = None, said: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.said = said or message


def headers(api_key: str | None) -> dict[str, str]:
    """Of every request."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def get(url: str, api_key: str | None = None, timeout_s: float = 60) -> httpx.Response:
    """Raises ServerError."""
    try:
        return checked(httpx.get(url, headers=headers(api_key), timeout=timeout_s, follow_redirects=True))
    except httpx.HTTPError as error:
        raise no_answer(url, error) from error


def post(url: str, body: dict[str, Any], api_key: str | None = None, timeout_s: float = 60) -> httpx.Response:
    """Raises ServerError."""
    try:
        return checked(httpx.post(url, json=body, headers=headers(api_key), timeout=timeout_s))
    except httpx.HTTPError as error:
        raise no_answer(url, error) from error


def get_object(url: str, api_key: str | None = None, timeout_s: float = 60) -> dict[str, Any]:
    """Raises ServerError."""
    return json_object(get(url, api_key, timeout_s))


def checked(response: httpx.Response) -> httpx.Response:
    """The response, whose body is read. Raises ServerError where its status is not 2xx."""
    if not response.is_success:
        raise refusal(response)
    return response


async def checked_stream(response: httpx.Response) -> None:
    """Raises ServerError where its status is not 2xx; only then the body is read."""
    if not response.is_success:
        await response.aread()
        raise refusal(response)


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Raises ServerError."""
    try:
        value = response.json()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        kind = response.headers.get("content-type", "no content type")
        raise ServerError(f"{address(response)} answered with {kind}, not with a JSON object: is the address right?")
    return value


def no_answer(url: str, error: httpx.HTTPError) -> ServerError:
    reason = str(error) or ("no answer in time" if isinstance(error, httpx.TimeoutException) else type(error).__name__)
    return ServerError(f"no answer from {url}: {reason}")


def refusal(response: httpx.Response) -> ServerError:
    """What a response that is not 2xx means; its body is read."""
    status, where = response.status_code, address(response)
    said = f"HTTP {status}: {message_of(response)}"
    if status in (401, 403):
        has_key = "authorization" in response.request.headers
        hint = "does not take this API key" if has_key else "wants an API key (--api-key)"
        return ServerError(f"the server at {where} {hint}: {said}", status, said)
    if status == 404:
        return ServerError(f"{where} is not there, or the model is not: {said}", status, said)
    if response.is_redirect:
        return ServerError(f"{where} has moved to {response.headers.get('location')}: HTTP {status}", status)
    return ServerError(f"the server at {where} refuses: {said}", status, said)


def address(response: httpx.Response) -> str:
    """Without what a user may have hidden in it."""
    return str(response.request.url.copy_with(username=None, password=None, query=None, fragment=None))


def message_of(response: httpx.Response) -> str:
    """The server's own sentence, out of any of the envelopes in use."""
    try:
        found = _sentence(response.json())
    except (ValueError, RecursionError):
        found = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", response.text, flags=re.DOTALL)
    printable = "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in found)
    return " ".join(printable.split())[:MAX_MESSAGE_CHARS] or response.reason_phrase or "no reason given"


def _sentence(document: Any) -> str:
    """OpenAI's {"error": {"message"}}, SGLang's {"message"} and {"error"}, FastAPI's {"detail"}, its list of faults."""
    if isinstance(document, dict):
        for key in ("error", "message", "detail", "msg"):
            if document.get(key):
                return _sentence(document[key])
    if isinstance(document, list):
        return "; ".join(map(_sentence, document))
    return str(document)
