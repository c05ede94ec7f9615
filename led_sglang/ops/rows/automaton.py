"""The thinking phase as a finite automaton over token ids.

Markers open and close the phase; each may be several tokens long. The automaton is Aho-Corasick over all, with the
thinking flag in the state, so that one integer per request is all there is to keep and a step is two gathers.

state = 2 * node + flag; 0 is "nothing matched, not thinking". Where two markers end on the same token (one is a suffix
of the other) the longer one wins.

A marker that is plain text may have no ids of its own: a tokenizer joins its last letter to the line break behind it.
`TextAutomaton` matches what tokens spell instead, by tables of the same form, so that a step costs the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ThinkingTables:
    """The automaton on a device."""

    symbol_of: Tensor  # (vocab_size,) int64: token id to symbol, 0 = in no marker
    next_state: Tensor  # (num_states * num_symbols,) int64
    num_symbols: int

    def advance(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """(R,), (R,) -> (R,): the states after a token each; an id outside the vocabulary is ordinary. Graph-safe."""
        known = token_ids.clamp(0, len(self.symbol_of) - 1)
        symbols = self.symbol_of[known].masked_fill_(known != token_ids, 0)
        return self.next_state[states * self.num_symbols + symbols]

    @staticmethod
    def thinking(states: Tensor) -> Tensor:
        """(R,) -> (R,) bool."""
        return (states & 1).bool()

    @cached_property
    def arrays(self) -> tuple[Any, Any, int]:
        """For `numba_loops.move_states`. CPU only."""
        return self.symbol_of.numpy(), self.next_state.numpy(), self.num_symbols


class ThinkingAutomaton:
    """Built once per server from its markers."""

    def __init__(
        self,
        open_ids: Sequence[int],
        close_ids: Sequence[int],
        vocab_size: int,
        more_open: Sequence[Sequence[int]] = (),
        more_close: Sequence[Sequence[int]] = (),
    ) -> None:
        """more_open, more_close: other markers of the same two meanings. Raises ValueError for markers of both."""
        opening = {tuple(marker) for marker in (open_ids, *more_open)}
        closing = {tuple(marker) for marker in (close_ids, *more_close)}
        check_markers(opening, closing, vocab_size)
        markers = {**dict.fromkeys(opening, 1), **dict.fromkeys(closing, 0)}
        tokens = sorted({token for marker in markers for token in marker})
        symbols = {token: symbol for symbol, token in enumerate(tokens, start=1)}
        self._fill(vocab_size, build_transitions(markers, [0, *tokens]), symbols)

    def _fill(
        self, vocab_size: int, next_state: np.ndarray[tuple[int, int], np.dtype[np.int64]], symbols: dict[int, int]
    ) -> None:
        """next_state: (num_states, num_symbols); symbols: of the tokens that are not ordinary (0), by id."""
        self.vocab_size = vocab_size
        self.num_symbols = next_state.shape[1]
        self.next_state = next_state
        self._symbols = symbols
        self._table: list[list[int]] = next_state.tolist()

    def run(self, ids: Sequence[int], state: int = 0) -> int:
        """The state after all of `ids`. Ids outside the vocabulary (multimodal padding) count as ordinary tokens."""
        symbols, table, expected = self._symbols, self._table, 0
        for position, token in enumerate(ids):
            if token not in symbols:
                continue
            if position != expected:  # ordinary tokens in between: back to the root, the flag stays
                state &= 1
            state, expected = table[state][symbols[token]], position + 1
        return state if expected == len(ids) else state & 1

    def thinking(self, state: int) -> bool:
        return bool(state & 1)

    def tables(self, device: torch.device | str) -> ThinkingTables:
        symbol_of = torch.zeros(self.vocab_size, dtype=torch.int64)
        symbol_of[list(self._symbols)] = torch.tensor(list(self._symbols.values()))
        return ThinkingTables(
            symbol_of.to(device), torch.from_numpy(self.next_state).flatten().to(device), self.num_symbols
        )


class TextAutomaton(ThinkingAutomaton):
    """Over the bytes that tokens spell. All tokens that move every state alike are one symbol."""

    def __init__(self, opening: Sequence[str], closing: Sequence[str], token_texts: Sequence[bytes | None]) -> None:
        """token_texts: by token id, of the whole vocabulary; None is an ordinary token.

        Raises ValueError for an empty marker, none of a kind, and a marker of both kinds.
        """
        texts = [{tuple(text.encode("utf-8")) for text in kind} for kind in (opening, closing)]
        if not all(texts) or not all(map(all, ([*kind] for kind in texts))) or texts[0] & texts[1]:
            raise ValueError(f"the thinking markers must be different, non-empty texts, got {opening} and {closing}")
        markers = {**dict.fromkeys(texts[0], 1), **dict.fromkeys(texts[1], 0)}
        letters = sorted({byte for marker in markers for byte in marker})
        moves = moves_of_tokens(build_transitions(markers, [0, *letters]), letters, token_texts)
        resets = np.arange(len(moves))[:, None] & 1
        special = np.flatnonzero((moves != resets).any(axis=0))
        alike, symbol_of = np.unique(moves[:, special], axis=1, return_inverse=True)
        symbols = dict(zip(special.tolist(), (symbol_of.reshape(-1) + 1).tolist(), strict=True))
        self._fill(len(token_texts), np.concatenate([resets, alike], axis=1).astype(np.int64), symbols)


def moves_of_tokens(
    by_byte: np.ndarray[tuple[int, int], np.dtype[np.int64]], letters: list[int], token_texts: Sequence[bytes | None]
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """(num_states, V): the state behind each token.

    by_byte: (num_states, 1 + len(letters)), the state behind a byte: of no marker, or of `letters`.
    """
    num_states, width = by_byte.shape
    symbol_of = np.zeros(256, np.int32)
    symbol_of[letters] = np.arange(1, width)
    table = by_byte.astype(np.int32).ravel()
    lengths = np.array([len(text or b"") for text in token_texts])
    order = np.argsort(-lengths, kind="stable")  # the longest first: those that go on are a prefix
    symbols = symbol_of[np.frombuffer(b"".join(token_texts[token] or b"" for token in order), np.uint8)]
    starts = np.cumsum(lengths[order]) - lengths[order]
    ascending = -lengths[order]
    moves = np.repeat(np.arange(num_states, dtype=np.int32)[:, None], len(token_texts), axis=1)
    for position in range(int(lengths.max(initial=0))):
        num_longer = int(np.searchsorted(ascending, -position, side="left"))
        symbol = symbols[starts[:num_longer] + position]
        for states in moves:
            states[:num_longer] = table[states[:num_longer] * width + symbol]
    moves[:, order] = moves.copy()
    unknown = [token for token, text in enumerate(token_texts) if text is None]
    moves[:, unknown] = np.arange(num_states, dtype=np.int32)[:, None] & 1
    return moves


def check_markers(opening: set[tuple[int, ...]], closing: set[tuple[int, ...]], vocab_size: int) -> None:
    markers = sorted(opening) + sorted(closing)
    if not all(markers) or opening & closing:
        raise ValueError(f"the thinking markers must be different, non-empty sequences, got {markers}")
    if not all(0 <= token < vocab_size for marker in markers for token in marker):
        raise ValueError(f"thinking markers {markers} lie outside the vocabulary of {vocab_size}")


def build_transitions(
    markers: dict[tuple[int, ...], int], tokens: list[int]
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(2 * num_nodes, num_symbols); a node is a prefix of a marker, a symbol an index into `tokens`, 0 the rest.

    markers: to the thinking flag behind each.
    """
    prefixes = sorted({marker[:n] for marker in markers for n in range(len(marker) + 1)}, key=lambda p: (len(p), p))
    node_of = {prefix: node for node, prefix in enumerate(prefixes)}
    table = np.zeros((2 * len(prefixes), len(tokens)), dtype=np.int64)
    for prefix, node in node_of.items():
        for flag in (0, 1):
            table[2 * node + flag, 0] = flag
            for symbol, token in enumerate(tokens[1:], start=1):
                seen = (*prefix, token)
                matched = next(seen[i:] for i in range(len(seen) + 1) if seen[i:] in node_of)
                table[2 * node + flag, symbol] = 2 * node_of[matched] + completed(seen, markers, flag)
    return table


def completed(seen: tuple[int, ...], markers: dict[tuple[int, ...], int], flag: int) -> int:
    """The thinking flag after `seen`, which holds the longest marker prefix that can end here."""
    for marker in sorted(markers, key=len, reverse=True):
        if seen[-len(marker) :] == marker:
            return markers[marker]
    return flag
