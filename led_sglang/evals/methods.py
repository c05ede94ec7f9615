"""The methods of a run: as written on the command line, as sent, and as the answer must report them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from led_sglang.config.fields import METHOD_KEYS
from led_sglang.evals.errors import EvalError

__all__ = ["Method", "parse_methods"]


@dataclass(frozen=True)
class Method:
    """`name` is the text of the command line; `params` the requested keys beside the method."""

    name: str
    method: str
    params: tuple[tuple[str, Any], ...] = ()

    def custom_params(self) -> dict[str, Any]:
        """Plain sampling is requested explicitly, because a server may decode with LED by default."""
        return {"led": False if self.method == "none" else {"method": self.method, **dict(self.params)}}

    def mismatch(self, applied: object) -> str | None:
        """How `meta_info.led_params` differs from the request; None where it does not."""
        if not isinstance(applied, dict):
            return "the answer has no meta_info.led_params: is led_sglang installed and switched on in this server?"
        for key, value in (("method", self.method), *self.params):
            if key not in applied or applied[key] != value:
                return f"asked for {key} = {value!r}, applied was {applied.get(key)!r}"
        return None


def parse_methods(text: str) -> list[Method]:
    """`cot,led,led:depth=4,top_k=3`: a piece `key=value` without a colon belongs to the method before it."""
    written: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        if "=" in piece and ":" not in piece and written:
            written[-1] += ("," if ":" in written[-1] else ":") + piece
        else:
            written.append(piece)
    if not written:
        raise EvalError("--methods names no method")
    if doubles := {name for name in written if written.count(name) > 1}:
        raise EvalError(f"--methods names {', '.join(sorted(doubles))} twice")
    return [_parse(name) for name in written]


def _parse(written: str) -> Method:
    label, _, rest = written.partition(":")
    method = {"cot": "none"}.get(label, label)
    if method not in METHOD_KEYS:
        raise EvalError(f"--methods: unknown method {label!r}; known: cot, {', '.join(METHOD_KEYS)}")
    params: dict[str, Any] = {}
    for piece in filter(None, rest.split(",")):
        key, equals, value = piece.partition("=")
        if not equals or key not in METHOD_KEYS[method]:
            legal = ", ".join(METHOD_KEYS[method]) or "none"
            raise EvalError(f"--methods: {piece!r} in {written!r} is no parameter of {label}; legal: {legal}")
        params[key] = _value(value)
    return Method(written, method, tuple(params.items()))


def _value(text: str) -> Any:
    """JSON where it is; what is none (words, and numbers that JSON has not, like NaN) is sent as text."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
