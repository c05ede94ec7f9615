"""The JSON Schema of `custom_params.led` on a server, as /openapi.json shows it.

It accepts what `request.parse_request` accepts, with two exceptions that a schema cannot express: an integer must not
be written as 8.0, and `latent_offset` 1 needs a depth of at most the captured layers.
"""

from collections.abc import Callable
from typing import Any

from led_sglang.config.fields import ALWAYS_ENABLED, FIELDS, METHOD_KEYS
from led_sglang.config.server import ServerConfig

__all__ = ["describing", "led_schema"]

NAME = "LedParams"
REQUESTS = ("ChatCompletionRequest", "CompletionRequest")  # SGLang's names of the bodies that hold custom_params


def led_schema(config: ServerConfig) -> dict[str, Any]:
    """A boolean, null, or an object with the keys of one enabled method."""
    methods = dict.fromkeys((*ALWAYS_ENABLED, *config.methods))
    objects = [_method_schema(method, config) for method in methods]
    return {"title": NAME, "anyOf": [{"type": "boolean"}, {"type": "null"}, *objects]}


def _method_schema(method: str, config: ServerConfig) -> dict[str, Any]:
    properties = {"method": {"const": method}, **{key: _key_schema(key, config) for key in METHOD_KEYS[method]}}
    required = [] if method == "led" else ["method"]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _key_schema(key: str, config: ServerConfig) -> dict[str, Any]:
    row = FIELDS[key]
    default = getattr(config, row.name) if row.server_default else row.default
    return {**row.legal.schema(config), "default": default, "description": row.meaning}


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
