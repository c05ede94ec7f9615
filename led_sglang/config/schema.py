"""The JSON Schema of `custom_params.led` on a server, as /openapi.json shows it.

It says what `params.parse_request` accepts, but for two things that a schema cannot say: an integer must not be written
as 8.0, and `latent_offset` 1 wants a depth of at most the captured layers.
"""

from collections.abc import Callable
from typing import Any

from led_sglang.config.params import (
    ALWAYS_ENABLED,
    CONFIDENT_LAYERS,
    MAX_SOFT_TOP_K,
    METHOD_KEYS,
    PHASES,
    LedParams,
    ServerConfig,
)

NAME = "LedParams"
REQUESTS = ("ChatCompletionRequest", "CompletionRequest")  # SGLang's names of the bodies that hold custom_params


def led_schema(config: ServerConfig) -> dict[str, Any]:
    """A boolean, null, or an object with the keys of one enabled method."""
    methods = dict.fromkeys((*ALWAYS_ENABLED, *config.methods))
    objects = [_method_schema(method, config) for method in methods]
    return {"title": NAME, "anyOf": [{"type": "boolean"}, {"type": "null"}, *objects]}


def _method_schema(method: str, config: ServerConfig) -> dict[str, Any]:
    ranges = _ranges(config)
    keys = {key: ranges[key] for key in METHOD_KEYS[method]}
    required = [] if method == "led" else ["method"]
    properties = {"method": {"const": method}, **keys}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _ranges(config: ServerConfig) -> dict[str, dict[str, Any]]:
    booleans = ("exploit", "latent_norm", "normalize_layers", "trace")
    phases = [phase for phase in PHASES if phase == "all" or config.open_ids or config.num_layers is None]
    return {
        **{key: {"type": "boolean", "default": getattr(LedParams(), key)} for key in booleans},
        "depth": _integer(1, config.max_depth, config.depth),
        "top_k": _integer(1, config.max_top_k, config.top_k),
        "phase": {"enum": phases, "default": config.phase},
        "latent_offset": _integer(0, 1, 0),
        "min_p": _number(0.0, 1.0, 0.0),
        "layers": {"enum": ["low", "high"], "default": "low"},
        "relative_top": _number(0.0, 1.0, LedParams().relative_top),
        "max_topk": _integer(1, MAX_SOFT_TOP_K, LedParams().max_topk),
        "early_stop_entropy": _number(0.0, 100.0, LedParams().early_stop_entropy),
        "early_stop_length": _integer(1, 1 << 20, LedParams().early_stop_length),
        "gumbel_temperature": _number(0.01, 100.0, LedParams().gumbel_temperature),
        "num_layers": _integer(2, min(CONFIDENT_LAYERS, config.num_layers or CONFIDENT_LAYERS), LedParams().num_layers),
    }


def _integer(low: int, high: int, default: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "default": default}


def _number(low: float, high: float, default: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high, "default": default}


def describing(openapi: Callable[[], dict[str, Any]], config: ServerConfig) -> Callable[[], dict[str, Any]]:
    """An app's `openapi`, with LED's parameters in the bodies that hold `custom_params`."""

    def with_led() -> dict[str, Any]:
        document = openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas[NAME] = led_schema(config)
        custom = {"type": "object", "properties": {"led": {"$ref": f"#/components/schemas/{NAME}"}}}
        for name in REQUESTS:
            if name in schemas:
                schemas[name].setdefault("properties", {})["custom_params"] = {"anyOf": [custom, {"type": "null"}]}
        return document

    return with_led
