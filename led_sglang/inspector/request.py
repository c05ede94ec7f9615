"""The body of POST /led/stream, checked."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.request import parse_request
from led_sglang.config.server import server_config

__all__ = ["MAX_SAMPLES", "MAX_SEED", "StreamRequest"]

MAX_SAMPLES = 8
MAX_SEED = (1 << 62) - 1
KEYS = ("messages", "prompt", "sampling", "led", "seed", "side", "n")
SIDES = ("led", "plain")


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
        _require(type(seed) is int and 0 <= seed <= MAX_SEED, "seed", "an integer in [0, 2^62)", seed)
        _require(type(n) is int and 1 <= n <= MAX_SAMPLES, "n", f"an integer in [1, {MAX_SAMPLES}]", n)
        _require(side in SIDES, "side", "one of " + ", ".join(SIDES), side)
        messages, prompt, sampling = requested.get("messages"), requested.get("prompt"), requested.get("sampling") or {}
        _require((messages is None) != (prompt is None), "messages or prompt", "exactly one of the two", None)
        _require(prompt is None or isinstance(prompt, str), "prompt", "a string", prompt)
        _require(messages is None or _are_messages(messages), "messages", "a list of {role, content}", messages)
        ours = ("custom_params", "n", "sampling_seed")
        _require(isinstance(sampling, dict) and not set(ours) & set(sampling), "sampling", f"without {ours}", sampling)
        return cls(messages, prompt, sampling, _led(requested.get("led"), side), seed, n)


def _require(is_right: bool, name: str, what: str, value: object) -> None:
    if not is_right:
        raise LedParamError(f"{name} must be {what}, got {show(value)}")


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
