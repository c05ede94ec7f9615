"""Types for argparse whose errors name the value and the legal range."""

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

__all__ = ["api_key", "integer", "number", "text", "url"]

Number = TypeVar("Number", int, float)


def integer(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Of [low, high]. What it returns raises ArgumentTypeError."""
    return _ranged(int, "an integer", low, high, includes_low=True)


def number(low: float, high: float = math.inf, includes_low: bool = True) -> Callable[[str], float]:
    """Of [low, high], or of (low, high]; never infinite. What it returns raises ArgumentTypeError."""
    return _ranged(float, "a number", low, high, includes_low)


def _ranged(
    convert: Callable[[str], Number], what: str, low: float, high: float, includes_low: bool
) -> Callable[[str], Number]:
    bounds = ", ".join(str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in (low, high))
    legal = f"{what} in {'[' if includes_low else '('}{bounds}{']' if math.isfinite(high) else ')'}"

    def parse(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not {legal}") from None
        is_high_enough = value >= low if includes_low else value > low
        if not (is_high_enough and value <= high and abs(value) != math.inf):
            raise ArgumentTypeError(f"{text!r} is not {legal}")
        return value

    return parse


def text(given: str) -> str:
    """Text for a request, which is UTF-8 whatever the terminal's encoding is. Raises ArgumentTypeError."""
    try:
        given.encode("utf-8")
    except UnicodeEncodeError:
        given = _from_bytes(os.fsencode(given))
    return given


def _from_bytes(raw: bytes) -> str:
    """Of an argument that Python could not decode with the terminal's encoding."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise ArgumentTypeError(f"byte {at + 1}, 0x{raw[at]:02x}, of {raw!r} is not UTF-8") from None


def url(given: str) -> str:
    """An address of a server, without the slash at its end. Raises ArgumentTypeError."""
    legal = "is not an address like http://127.0.0.1:30000"
    given = text(given)
    try:
        parts = urlsplit(given)
        is_legal = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError as error:  # a port that is no number, brackets that do not close, a host that cannot be
        raise ArgumentTypeError(f"{given!r} {legal}: {error}") from None
    if not is_legal or not given.isprintable() or " " in given:
        raise ArgumentTypeError(f"{given!r} {legal}")
    return given.rstrip("/")


def api_key(given: str) -> str:
    """What a header can carry. Raises ArgumentTypeError, which does not show the key."""
    if not given or not all("!" <= character <= "~" for character in given):
        raise ArgumentTypeError("a key is one or more printable ASCII characters without spaces")
    return given
