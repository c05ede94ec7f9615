"""From a chat message to the text that may hold the answer, and from there to the answer."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["Thinking", "braces_close", "final_text", "last_boxed", "last_code_block"]

Thinking = Literal["auto", "required"]
END_THINK = "</think>"


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
    r"""Contents of the last \boxed{...} whose braces close."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0) if text[position - 1] != "\\" else 0
            if depth == 0:
                return text[start:position].strip()
    return None


def braces_close(text: str) -> bool:
    """Whether every unescaped brace has its other half, so that the text fits into a box."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def last_code_block(text: str) -> str | None:
    """The last fenced block; None where there is none or it never closes."""
    blocks = re.findall(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", text, flags=re.DOTALL | re.MULTILINE)
    return str(blocks[-1]) if blocks else None
