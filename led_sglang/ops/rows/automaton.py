"""The thinking phase as a finite automaton over token ids.

Markers open and close the phase; each may be several tokens long. The automaton is Aho-Corasick over all, with the
thinking flag in the state, so that one integer per request is all there is to keep and a step is two gathers.

state = 2 * node + flag; 0 is "nothing matched, not thinking". Where two markers end on the same token (one is a suffix
of the other) the longer one wins.
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
        self.vocab_size = vocab_size
        self.num_symbols = len(tokens) + 1
        self.next_state = build_transitions(markers, [0, *tokens])  # (num_states, num_symbols)
        self._symbols = {token: symbol for symbol, token in enumerate(tokens, start=1)}
        self._table: list[list[int]] = self.next_state.tolist()

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
