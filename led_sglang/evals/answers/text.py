"""From a chat message to the text that may hold the answer, and the box in it."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["Thinking", "braces_close", "bracketed", "final_text", "last_boxed"]

Thinking = Literal["auto", "required"]
END_THINK = "</think>"
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:\{|(?P<bare>-?\w+))")


def final_text(content: str, reasoning: str, finish_reason: str | None, thinking: Thinking) -> str:
    """What follows the thinking; empty where the thinking never ended, so that its content does not count.

    A server with a reasoning parser has moved the thinking to `reasoning`. Without a marker and without a parser, text
    that was cut off may still be thinking; text that ended by itself is an answer, unless thinking is `required`.
    """
    if END_THINK in content:
        return content.rpartition(END_THINK)[2].strip()
    if reasoning:
        return content.strip()
    return "" if thinking == "required" or finish_reason == "length" else content.strip()


def last_boxed(text: str) -> str | None:
    r"""Contents of the last \boxed{...} (or \fbox{...}, or \boxed 5) whose braces close."""
    for box in reversed(list(BOX.finditer(text))):
        inside = box["bare"] if box["bare"] is not None else bracketed(text, box.end())
        if inside is not None:
            return inside.strip()
    return None


def bracketed(text: str, start: int) -> str | None:
    """What stands between an opening brace that ends at `start` and its other half; None where that is missing."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0) if text[position - 1] != "\\" else 0
        if depth == 0:
            return text[start:position]
    return None


def braces_close(text: str) -> bool:
    """Whether every unescaped brace has its other half, so that the text fits into a box."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
