"""Find the markers that open and close the thinking phase, as token ids of the served model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import category

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import ServerConfig

__all__ = ["Markers", "ParserMarkers", "find_markers", "with_markers"]

logger = logging.getLogger(__name__)

DEFAULT_OPEN, DEFAULT_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Markers:
    """Texts and ids of both markers."""

    open_text: str
    close_text: str
    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    more_open: tuple[tuple[int, ...], ...] = ()  # of the same two meanings
    more_close: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ParserMarkers:
    """Of a reasoning parser: the pair it splits at, and what else opens or ends a thought for it."""

    texts: tuple[str, str]
    more_open: tuple[str, ...] = ()
    more_close: tuple[str, ...] = ()  # a tool call that begins inside a thought ends it


def find_markers(
    tokenizer: Any, config: ServerConfig, parser_markers: tuple[str, str] | ParserMarkers | None
) -> Markers | None:
    """From --led-think-open/--led-think-close where set, else `--reasoning-parser`'s, else the tokenizer's <think>.

    Returns None where none is found and no phase needs one. Raises LedParamError where phase "think" needs one, for
    named markers that cannot be distinguished, and for those that the tokenizer writes otherwise in running text.
    """
    parser = ParserMarkers(parser_markers) if isinstance(parser_markers, tuple) else parser_markers
    parser_markers = None if parser is None else parser.texts
    is_explicit = config.think_open is not None or config.think_close is not None
    if config.think_open is not None and config.think_close is not None:
        texts = (config.think_open, config.think_close)
        if parser_markers is not None and parser_markers != texts:
            logger.warning(
                "LED's thinking phase is from %r to %r, as --led-think-open and --led-think-close say; the reasoning "
                "parser still splits answers, and holds grammars back, at its own %r and %r",
                *texts,
                *parser_markers,
            )
    elif is_explicit:
        raise LedParamError("--led-think-open and --led-think-close go together: set both")
    else:
        texts = parser_markers or (DEFAULT_OPEN, DEFAULT_CLOSE)
    fault = _fault_of_texts(texts)
    ids = ((), ()) if fault else (_encode(tokenizer, texts[0]), _encode(tokenizer, texts[1]))
    fault = fault or _fault_of_ids(texts, ids, config.vocab_size, getattr(tokenizer, "unk_token_id", None))
    fault = fault or _fault_in_text(tokenizer, dict(zip(texts, ids, strict=True)))
    is_known = is_explicit or parser_markers is not None or all(len(i) == 1 for i in ids)
    if is_known and fault is None:
        if parser is None or parser.texts != texts:
            return Markers(*texts, *ids)
        more = (_findable(tokenizer, config, more) for more in (parser.more_open, parser.more_close))
        return Markers(*texts, *ids, *more)
    if is_explicit:
        raise LedParamError(f"--led-think-open {texts[0]!r}, --led-think-close {texts[1]!r}: {fault}")
    if config.phase == "all":
        return None
    why = f"the tokenizer has no single tokens {DEFAULT_OPEN} and {DEFAULT_CLOSE}"
    if parser_markers is not None:
        why = f"the reasoning parser's, {texts[0]!r} and {texts[1]!r}, cannot be used: {fault}"
    raise LedParamError(
        f"no thinking markers found: {why}. Set --reasoning-parser, or --led-think-open and --led-think-close, or "
        f"--led-phase all"
    )


def _fault_of_texts(texts: tuple[str, str]) -> str | None:
    for text in texts:
        if not text:
            return "a marker must not be empty"
        if any(category(letter) in ("Cc", "Cs") and letter not in "\n\r\t" for letter in text):
            return f"a marker must be text without control characters and broken bytes, got {text!r}"
    return "one marker must not begin with the other" if _is_prefix(*texts) else None


def _fault_of_ids(
    texts: tuple[str, str], ids: tuple[tuple[int, ...], tuple[int, ...]], vocab_size: int, unknown_id: int | None
) -> str | None:
    for text, marker in zip(texts, ids, strict=True):
        if not marker or unknown_id in marker:
            return f"the tokenizer cannot spell {text!r}"
        if vocab_size and not all(0 <= token < vocab_size for token in marker):
            return f"the tokens {list(marker)} of {text!r} lie outside of the model's vocabulary of {vocab_size}"
    if _is_prefix(*ids):
        return f"the tokens of one marker must not begin with the other's, got {list(ids[0])} and {list(ids[1])}"
    return None


NEIGHBOURS = ("", "a", ".", " ", "\n", "\n\n", ".\n\n", "\u4e2d")  # of each kind that a text has beside a marker


def _fault_in_text(tokenizer: Any, markers: dict[str, tuple[int, ...]]) -> str | None:
    """A tokenizer may join a marker that is plain text to what stands beside it: then its own tokens never come."""
    for text, ids in markers.items():
        for before in NEIGHBOURS:
            for after in NEIGHBOURS:
                found = _encode(tokenizer, before + text + after)
                if not any(found[i : i + len(ids)] == ids for i in range(len(found))):
                    return (
                        f"the tokenizer joins {text!r} to its neighbours: in {before + text + after!r} its tokens "
                        f"{list(ids)} do not appear, so the phase would be missed"
                    )
    return None


def _findable(tokenizer: Any, config: ServerConfig, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The tokens of the parser's other markers; one that cannot be found in running text is logged and left out."""
    kept = []
    for text in texts:
        ids = _encode(tokenizer, text)
        is_known = bool(ids) and getattr(tokenizer, "unk_token_id", None) not in ids
        is_legal = is_known and all(0 <= token < (config.vocab_size or token + 1) for token in ids)
        fault = _fault_in_text(tokenizer, {text: ids}) if is_legal else f"the tokenizer cannot spell {text!r}"
        if fault is None:
            kept.append(ids)
        else:
            logger.warning("LED does not see the reasoning parser's %r in a thought: %s", text, fault)
    return tuple(kept)


def _is_prefix(one: Sequence[Any], other: Sequence[Any]) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def with_markers(config: ServerConfig, markers: Markers | None) -> ServerConfig:
    if markers is None:
        return config
    return replace(
        config,
        think_open=markers.open_text,
        think_close=markers.close_text,
        open_ids=markers.open_ids,
        close_ids=markers.close_ids,
        more_open=markers.more_open,
        more_close=markers.more_close,
    )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
