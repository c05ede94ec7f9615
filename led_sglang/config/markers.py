"""Find the markers that open and close the thinking phase: as token ids of the served model, or as text.

Ids are enough where a tokenizer writes a marker with the same ones whatever stands beside it: for special tokens
always, for plain text seldom. Else the text is matched in what tokens spell, where the tokenizer says what they spell.
"""

import logging
from collections.abc import Callable, Sequence
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
    matched_texts: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # that open, that close; None: ids are enough


@dataclass(frozen=True)
class ParserMarkers:
    """Of a reasoning parser: the pair it splits at, and what else opens or ends a thought for it."""

    texts: tuple[str, str]
    more_open: tuple[str, ...] = ()
    more_close: tuple[str, ...] = ()  # a tool call that begins inside a thought ends it


TokenTexts = Callable[[], Sequence[bytes | None]]  # by id; None: the tokenizer does not say


def find_markers(
    tokenizer: Any,
    config: ServerConfig,
    parser_markers: tuple[str, str] | ParserMarkers | None,
    token_texts: TokenTexts = lambda: (),
) -> Markers | None:
    """From --led-think-open/--led-think-close where set, else `--reasoning-parser`'s, else the tokenizer's <think>.

    Returns None where none is found and no phase needs one. Raises LedParamError where phase "think" needs one, for
    named markers that cannot be distinguished, and for those that neither ids nor texts find in running text.
    """
    parser = ParserMarkers(parser_markers) if isinstance(parser_markers, tuple) else parser_markers
    is_explicit = config.think_open is not None or config.think_close is not None
    texts = _texts(config, None if parser is None else parser.texts)
    fault = _fault_of_texts(texts)
    ids = ((), ()) if fault else (_encode(tokenizer, texts[0]), _encode(tokenizer, texts[1]))
    fault = fault or _fault_of_ids(texts, ids, config.vocab_size, getattr(tokenizer, "unk_token_id", None))
    if fault is None and (is_explicit or parser is not None or all(len(i) == 1 for i in ids)):
        is_parsers = parser is not None and parser.texts == texts
        more = (parser.more_open, parser.more_close) if parser is not None and is_parsers else ((), ())
        misfit = None if is_explicit else _misfit(tokenizer, ids)
        found = misfit or _found(tokenizer, config, Markers(*texts, *ids), more, token_texts)
        if isinstance(found, Markers):
            return found
        fault = found
    if is_explicit:
        raise LedParamError(f"--led-think-open {texts[0]!r}, --led-think-close {texts[1]!r}: {fault}")
    if config.phase == "all":
        return None
    why = f"the tokenizer has no single tokens {DEFAULT_OPEN} and {DEFAULT_CLOSE}"
    if parser is not None:
        why = f"the reasoning parser's, {texts[0]!r} and {texts[1]!r}, cannot be used: {fault}"
    raise LedParamError(
        f"no thinking markers found: {why}. Set --reasoning-parser, or --led-think-open and --led-think-close, or "
        f"--led-phase all"
    )


def _texts(config: ServerConfig, of_parser: tuple[str, str] | None) -> tuple[str, str]:
    if config.think_open is None and config.think_close is None:
        return of_parser or (DEFAULT_OPEN, DEFAULT_CLOSE)
    if config.think_open is None or config.think_close is None:
        raise LedParamError("--led-think-open and --led-think-close go together: set both")
    texts = config.think_open, config.think_close
    if of_parser is not None and of_parser != texts:
        logger.warning(
            "LED's thinking phase is from %r to %r, as --led-think-open and --led-think-close say; the reasoning "
            "parser still splits answers, and holds grammars back, at its own %r and %r",
            *texts,
            *of_parser,
        )
    return texts


def _found(
    tokenizer: Any,
    config: ServerConfig,
    markers: Markers,
    more: tuple[tuple[str, ...], tuple[str, ...]],
    token_texts: TokenTexts,
) -> Markers | str:
    """`markers` with the parser's `more`, by ids or by texts; or what is wrong with both. More of them may be lost."""
    pair = {markers.open_text: markers.open_ids, markers.close_text: markers.close_ids}
    fault = _fault_in_text(tokenizer, pair)
    kept, lost = _findable(tokenizer, config, more)
    if fault is None and not lost:
        return replace(markers, more_open=kept[0], more_close=kept[1])
    opening, closing = (markers.open_text, *more[0]), (markers.close_text, *more[1])
    unspelt = _fault_of_spelling(tokenizer, (*opening, *closing), token_texts())
    if unspelt is None:
        logger.info("LED matches %r and %r in what tokens spell: %s", opening, closing, fault or lost)
        return replace(markers, matched_texts=(opening, closing))
    if fault is not None:
        return f"{fault}, and {unspelt}"
    for text, why in lost.items():
        logger.warning("LED does not see the reasoning parser's %r in a thought: %s, and %s", text, why, unspelt)
    return replace(markers, more_open=kept[0], more_close=kept[1])


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


def _misfit(tokenizer: Any, ids: tuple[tuple[int, ...], tuple[int, ...]]) -> str | None:
    """Another family's parser: its markers are spelt in letters, and the tokenizer has a pair of its own."""
    own = _encode(tokenizer, DEFAULT_OPEN), _encode(tokenizer, DEFAULT_CLOSE)
    if ids == own or min(map(len, ids)) == 1 or max(map(len, own)) > 1:
        return None
    return f"they are plain text to the tokenizer, which has the tokens {DEFAULT_OPEN} and {DEFAULT_CLOSE}"


def _fault_in_text(tokenizer: Any, markers: dict[str, tuple[int, ...]]) -> str | None:
    """A tokenizer may join a marker that is plain text to what stands beside it: then its own tokens never come."""
    for text, ids in markers.items():
        if (special := _special_id(tokenizer, text)) is not None and ids == (special,):
            continue  # whatever stands beside it
        for shown in _in_context(text):
            found = _spelt(tokenizer, shown)
            if not any(found[i : i + len(ids)] == ids for i in range(len(found))):
                return (
                    f"the tokenizer joins {text!r} to its neighbours: in {shown!r} its tokens {list(ids)} do not "
                    f"appear, so the phase would be missed"
                )
        for token, content in getattr(tokenizer, "added_tokens_decoder", {}).items():
            if text in str(content) and (token,) != ids:
                return f"{text!r} is a part of the token {token}, {str(content)!r}"
    return None


def _in_context(text: str) -> list[str]:
    return [before + text + after for before in NEIGHBOURS for after in NEIGHBOURS]


def _fault_of_spelling(tokenizer: Any, texts: Sequence[str], token_texts: Sequence[bytes | None]) -> str | None:
    """What the tokens of a text spell must be the text; SentencePiece may put a space before it."""
    for text in texts:
        for shown in _in_context(text):
            spelt = [token_texts[token] if token < len(token_texts) else None for token in _spelt(tokenizer, shown)]
            known = b"".join(piece for piece in spelt if piece is not None)
            if None in spelt or not known.endswith(shown.encode()):
                return f"the tokens of {shown!r} spell {known.decode('utf-8', 'replace')!r} by the tokenizer's own list"
    return None


def _findable(
    tokenizer: Any, config: ServerConfig, more: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], dict[str, str]]:
    """The ids of the parser's other markers, (that open, that close); and what hides the others, by text."""
    kept: tuple[list[tuple[int, ...]], ...] = ([], [])
    lost: dict[str, str] = {}
    for texts, ids_of_kind in zip(more, kept, strict=True):
        for text in texts:
            ids = _encode(tokenizer, text)
            is_known = bool(ids) and getattr(tokenizer, "unk_token_id", None) not in ids
            is_legal = is_known and all(0 <= token < (config.vocab_size or token + 1) for token in ids)
            fault = _fault_in_text(tokenizer, {text: ids}) if is_legal else f"the tokenizer cannot spell {text!r}"
            if fault is None:
                ids_of_kind.append(ids)
            else:
                lost[text] = fault
    return tuple(map(tuple, kept)), lost


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
        matched_texts=markers.matched_texts,
    )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """A special token is its own id: mistral-common spells one that it is given as text."""
    special = _special_id(tokenizer, text)
    return _spelt(tokenizer, text) if special is None else (special,)


def _special_id(tokenizer: Any, text: str) -> int | None:
    special = getattr(tokenizer, "all_special_ids", ())
    token = tokenizer.convert_tokens_to_ids(text) if special else None
    is_special = token in special and tokenizer.convert_ids_to_tokens(token) == text
    return token if is_special else None


def _spelt(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
