"""A request's parameters: from the wire value of `custom_params.led` to what the scheduler receives."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from led_sglang.config.checks import LedParamError, require_choice, show
from led_sglang.config.fields import ALWAYS_ENABLED, FIELDS, METHOD_KEYS, LedParams
from led_sglang.config.methods import METHODS
from led_sglang.config.server import ServerConfig
from led_sglang.wire import RESOLVED_KEY

__all__ = ["ResolvedRequest", "check_custom_params", "parse_request", "refuse_beams"]

NAME = "custom_params.led."


def check_custom_params(custom: object) -> None:
    """Raises LedParamError for what is no object, or holds the key of the resolved parameters."""
    if not isinstance(custom, dict):
        raise LedParamError(f"custom_params must be an object, got {show(custom)}")
    if RESOLVED_KEY in custom:
        raise LedParamError(f"custom_params: the key {RESOLVED_KEY!r} is reserved")


def parse_request(value: object, config: ServerConfig) -> LedParams | None:
    """Resolve the wire value of `custom_params.led` against the server's defaults.

    `value`: None (absent: the server's default), a bool, or an object with keys of LedParams.
    Returns None where LED is neither requested nor on by default. Raises LedParamError.

    The HTTP middleware and SGLang's own `verify` both ask, of the same request: the second is answered from memory.
    """
    try:
        wire = _Wire(json.dumps(value), value)
    except (TypeError, ValueError, RecursionError):
        return _parse(value, config)  # no JSON: it is refused there
    return _parse_once(wire, config)


@dataclass(frozen=True)
class _Wire:
    """A value with the equality of its text: True, 1 and 1.0 are three."""

    text: str
    value: object = field(compare=False)


@lru_cache(maxsize=1024)
def _parse_once(wire: _Wire, config: ServerConfig) -> LedParams | None:
    return _parse(wire.value, config)


def _parse(value: object, config: ServerConfig) -> LedParams | None:
    if value is None:
        return _parse(True, config) if config.default_on else None
    if value is False:
        return LedParams(method="none")
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise LedParamError(f"custom_params.led must be true, false or an object, got {show(value)}")
    method = value.get("method", "led")
    _require_method(method, config)
    _require_known(value, method)
    defaults = {key: getattr(config, row.name) for key, row in FIELDS.items() if row.server_default}
    params = LedParams.from_keys({**defaults, **value})
    for key in METHOD_KEYS[method]:
        FIELDS[key].legal.check(NAME + key, params.get(key), config)
        if key in _SECOND_CHECKS:
            _SECOND_CHECKS[key](params, config)
    return params


def refuse_beams(beam_width: object, params: LedParams | None) -> None:
    """Raises LedParamError for a beam search of a request that another method than the engine's own decodes."""
    if beam_width not in (None, 1) and params is not None and params.method != "none":
        raise LedParamError(
            f"LED samples, it cannot run a beam search: beam_width must be 1, got {show(beam_width)}; "
            "a search needs LED off for the request: custom_params.led false"
        )


def _require_method(method: object, config: ServerConfig) -> None:
    require_choice(NAME + "method", method, METHODS)
    if method not in ALWAYS_ENABLED and method not in config.methods:
        enabled = ",".join((*config.methods, str(method)))
        raise LedParamError(
            f"{NAME}method {method!r} is not enabled on this server: start with --led-methods {enabled}"
        )


def _require_known(value: dict[str, Any], method: str) -> None:
    legal = ("method", *METHOD_KEYS[method])
    for key in value:
        if key in legal:
            continue
        owners = [other for other, keys in METHOD_KEYS.items() if key in keys]
        what = f"key {show(key)} belongs to method {' and '.join(owners)}" if owners else f"unknown key {show(key)}"
        raise LedParamError(f"custom_params.led: {what}; keys of method {method!r}: {', '.join(legal)}")


def _require_markers(params: LedParams, config: ServerConfig) -> None:
    if params.phase == "think" and not config.has_markers:
        raise LedParamError(f'{NAME}phase "think" needs thinking markers, this server has none: use "all"')


def _require_layers(params: LedParams, config: ServerConfig) -> None:
    if params.latent_offset and params.depth > max(1, config.num_captured):
        raise LedParamError(
            f"{NAME}latent_offset 1 with depth {params.depth} needs {params.depth} latent layers, the server captures "
            f"{config.num_captured}: use a depth of at most {config.num_captured}"
        )


# Checks that involve two keys, or a key and the server; each runs after the range check of its key.
_SECOND_CHECKS: dict[str, Callable[[LedParams, ServerConfig], None]] = {
    "phase": _require_markers,
    "latent_offset": _require_layers,
}


@dataclass(frozen=True)
class ResolvedRequest:
    """A request's resolved parameters on their way from the HTTP process to the scheduler."""

    params: LedParams
    seed: int  # of LED's noise: the request's own or drawn once for it
    is_seeded: bool  # the request named its seed
    sample: int  # index among the n samples of one request

    def to_wire(self) -> dict[str, Any]:
        return {**self.params.to_wire(), "seed": self.seed, "is_seeded": self.is_seeded, "sample": self.sample}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> "ResolvedRequest":
        return cls(LedParams.from_wire(wire), wire["seed"], wire["is_seeded"], wire["sample"])
