"""Find the markers that open and close the thinking phase, as token ids of the served model."""

from dataclasses import dataclass, replace
from typing import Any

from led_sglang.params import LedParamError, ServerConfig

DEFAULT_OPEN, DEFAULT_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Markers:
    """Texts and ids of both markers."""

    open_text: str
    close_text: str
    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]


def find_markers(tokenizer: Any, config: ServerConfig, parser_markers: tuple[str, str] | None) -> Markers | None:
    """From `--reasoning-parser` where set, else --led-think-open/--led-think-close, else the tokenizer's <think>.

    Returns None where none is found and no phase needs one. Raises LedParamError where phase "think" needs one.
    """
    is_explicit = config.think_open is not None or config.think_close is not None
    if is_explicit and (config.think_open is None or config.think_close is None):
        raise LedParamError("--led-think-open and --led-think-close go together: set both")
    if is_explicit and parser_markers is None:
        texts = (str(config.think_open), str(config.think_close))
    else:
        texts = parser_markers or (DEFAULT_OPEN, DEFAULT_CLOSE)
    ids = tuple(_encode(tokenizer, text) for text in texts)
    is_known = is_explicit or parser_markers is not None or all(len(i) == 1 for i in ids)
    if is_known and all(ids):
        return Markers(*texts, *ids)
    if config.phase == "all":
        return None
    raise LedParamError(
        f"no thinking markers found: the tokenizer has no single tokens {DEFAULT_OPEN} and {DEFAULT_CLOSE}. Set "
        f"--reasoning-parser, or --led-think-open and --led-think-close, or --led-phase all"
    )


def with_markers(config: ServerConfig, markers: Markers | None) -> ServerConfig:
    if markers is None:
        return config
    return replace(
        config,
        think_open=markers.open_text,
        think_close=markers.close_text,
        open_ids=markers.open_ids,
        close_ids=markers.close_ids,
    )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
