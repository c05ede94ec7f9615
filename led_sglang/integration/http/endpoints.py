"""Where a request holds LED's parameters, endpoint by endpoint, and a search for them anywhere else in it.

Parameters are honoured in the places of `ENDPOINTS`. What looks like LED's in any other place is refused, and the error
names the right place, so that no parameter is dropped in silence. Only the objects in which clients put parameters are
searched: messages, tools and schemas are the client's own, whatever their keys are called.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import KEYS
from led_sglang.wire import RESOLVED_KEY

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "ENDPOINTS",
    "GENERATE",
    "INVOCATIONS",
    "OPENAI_PATHS",
    "OURS",
    "RESPONSES",
    "TRANSCRIPTIONS",
    "VERTEX",
    "read_form",
    "read_object",
    "refuse_misplaced",
    "refuse_twice",
]

CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
RESPONSES, GENERATE, VERTEX = "/v1/responses", "/generate", "/vertex_generate"
TRANSCRIPTIONS = "/v1/audio/transcriptions"  # a form, not JSON
OPENAI_PATHS = (CHAT, COMPLETIONS, INVOCATIONS, RESPONSES)
OPENAI_KEYS = ("custom_params.led", "metadata.led")
# Every route of SGLang that generates text, and where parameters are read there; nowhere: its protocol has no field.
ENDPOINTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OPENAI_PATHS, OPENAI_KEYS),
    GENERATE: ("sampling_params.custom_params.led",),
    VERTEX: ("parameters.sampling_params.custom_params.led",),
    **dict.fromkeys(("/v1/messages", "/api/chat", "/api/generate", TRANSCRIPTIONS), ()),
}
HOLDERS = frozenset(  # and custom_params
    (
        *("metadata", "samplingparams", "parameters", "instances", "options", "sessionparams"),
        *("extrabody", "extraparams", "extraargs", "extraquery", "modelkwargs", "vllmxargs", "generationconfig"),
        *("params", "kwargs", "generationkwargs", "genkwargs", "additionalkwargs", "litellmparams", "provideroptions"),
        *("chattemplatekwargs", "nvext", "extra", "extrajson", "inferenceparams"),
    )
)
LIKE_LED = frozenset(("led", "led_params", RESOLVED_KEY.strip("_"), *(f"led_{key}" for key in KEYS)))
MAX_DEPTH = 6  # keys and indices in front of a holder's own
AS_STRING = " (a string)"
# Bodies to look into: with a key of LED's, with custom_params, with ASCII letters as \u0061, and what is not UTF-8.
OURS = re.compile(
    rb'"[-_.]*(?:custom[-_.]params[-_.])?led["\\._-]|"[-_]*custom[-_]*params?[-_]*\\?"|\\u00[2-7]|\x00', re.IGNORECASE
)
CUSTOM = re.compile(r"[-_]*custom[-_]*params?[-_]*", re.IGNORECASE | re.ASCII)
KeyPath = tuple[str | int, ...]  # keys and indices


class Twice(dict[str, Any]):
    """A JSON object in which keys occurred twice."""

    repeated: frozenset[str] = frozenset()


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of json.loads."""
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    twice = Twice(read)
    twice.repeated = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return twice


def read_form(body: bytes) -> dict[str, Any]:
    """A multipart form's fields but for its files, as strings."""
    fields = re.findall(rb'; *name="([^"]{1,99})"\r\n(?:[^\r\n]+\r\n)*\r\n(.{0,65536}?)\r\n--', body, re.DOTALL)
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}


def is_like_led(key: str) -> bool:
    """`led`, `LED`, `led_depth`, `led.depth`, `--led-depth`, `custom_params.led`, `__led_sglang`, ..."""
    return re.sub(r"[.-]", "_", key.lower()).strip("_").removeprefix("custom_params_") in LIKE_LED


def is_holder(key: str) -> bool:
    """`custom_params`, `extra_body`, `samplingParams`, ...: an object in which clients put parameters."""
    return CUSTOM.fullmatch(key) is not None or re.sub(r"[-_]", "", key.lower()) in HOLDERS


def refuse_misplaced(request: dict[str, Any], path: str) -> None:
    """Raises LedParamError for what looks like LED's in a place where `path` does not read it."""
    legal = [tuple(key_path.split(".")) for key_path in ENDPOINTS[path]]
    for key_path in _search(request, (), _has_processor(request)):
        each = [
            key for i, key in enumerate(key_path) if not (isinstance(key, int) and key_path[i - 1] == "sampling_params")
        ]
        if tuple(each) not in legal:
            raise LedParamError(f"{_name(key_path)}: {_why(path)}")


def _why(path: str) -> str:
    legal = " or ".join(ENDPOINTS[path])
    if legal:
        return f"LED's parameters are not read there; on {path} they belong in {legal}"
    return (
        f"SGLang's {path} has no place for LED's parameters, so the server's default (--led) holds there; use "
        f"custom_params.led on {CHAT}, {COMPLETIONS} or {RESPONSES}, or {ENDPOINTS[GENERATE][0]} on {GENERATE}"
    )


def _search(holder: dict[str, Any], key_path: KeyPath, has_processor: bool) -> Iterator[KeyPath]:
    """Places of what looks like LED's; nulls, which request nothing, are left out."""
    names = [key.removesuffix(AS_STRING) for key in key_path if isinstance(key, str)]
    is_custom = bool(names) and CUSTOM.fullmatch(names[-1]) is not None
    for key, value in holder.items():
        here = (*key_path, key)
        if key in getattr(holder, "repeated", ()) and (is_like_led(key) or is_holder(key)):
            raise LedParamError(f"{_name(here)} stands twice in the request")
        if is_like_led(key) or (is_custom and not has_processor and key.lower() in KEYS):
            refuse_twice(value, here)
            if value is not None:
                yield here
        elif len(key_path) < MAX_DEPTH and is_holder(key):
            for inner, inner_path in _objects(value, here):
                yield from _search(inner, inner_path, has_processor)


def refuse_twice(value: object, key_path: KeyPath) -> None:
    """Raises LedParamError for an object of parameters in which a key occurs twice."""
    for key in sorted(getattr(value, "repeated", ())):
        raise LedParamError(f"{_name((*key_path, key))} stands twice in the request")


def _name(key_path: KeyPath) -> str:
    """As people write it: `sampling_params[1].custom_params.LED`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key:.40}" for key in key_path).lstrip(".")


def _objects(value: Any, key_path: KeyPath) -> Iterator[tuple[dict[str, Any], KeyPath]]:
    """The object, or a list's objects, or the object that a string holds as JSON."""
    if isinstance(value, dict):
        yield value, key_path
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, dict):
                yield item, (*key_path, i)
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            written = json.loads(value)
        except (ValueError, RecursionError):
            return
        if isinstance(written, dict):
            yield written, (*key_path[:-1], f"{key_path[-1]}{AS_STRING}")


def _has_processor(request: dict[str, Any]) -> bool:
    """A custom logit processor has parameters of its own in custom_params, under any names."""
    parameters = request.get("parameters")
    wrapped = parameters if isinstance(parameters, dict) else {}
    return bool(request.get("custom_logit_processor") or wrapped.get("custom_logit_processor"))
