"""What a request is told about itself in `meta_info`: its parameters, `led_stats` and the trace."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from led_sglang.config.fields import LedParams
from led_sglang.wire import ACTIVE, DEPTH_SHIFT, EXPLORED, FALLBACK, THINKING, TRACE_KEYS, VALUE_COLUMNS

NO_VALUES = (None,) * len(VALUE_COLUMNS)


@dataclass
class RequestView:
    """What one request is told about itself: its trace piece by piece, one for each answer, and its sums so far."""

    params: LedParams
    is_counted: bool = False  # among the requests that were answered
    num_reported: int = 0  # tokens that an answer has held
    num_unreported: int = 0  # of them, those of which nothing is known: a fault of ours lost their entries
    num_active: int = 0
    num_thinking: int = 0
    num_explored: int = 0
    num_fallbacks: int = 0
    total_depth: int = 0  # of the explored tokens
    waiting: list[Any] = field(default_factory=list)  # entries of tokens that no answer has held yet

    @cached_property
    def applied(self) -> dict[str, Any]:
        """`led_params`; made once, since a stream tells it with every token."""
        return self.params.to_dict()

    def add(self, entries: list[Any], num_tokens: int | None = None) -> None:
        """The entries of newly generated tokens: int flags, a tuple of flags and trace values, or None: not told.

        num_tokens: of the request by now. Entries that were lost before these are not told.
        """
        if num_tokens is not None:
            num_lost = num_tokens - self.num_reported - len(self.waiting) - len(entries)
            self.waiting += [None] * num_lost
        self.waiting += entries

    def report(self, num_tokens: int) -> dict[str, Any]:
        """What joins the `meta_info` of the answer that ends with token number `num_tokens` of the request.

        Its trace lists hold what is new since the answer before, and nothing is kept of that. Entries may have come of
        later tokens, which wait for their own answer. A token whose entry was lost counts as `unreported`, and is
        told like one of the engine's.
        """
        num_new = max(0, num_tokens - self.num_reported)
        entries, self.waiting = self.waiting[:num_new], self.waiting[num_new:]
        entries += [None] * (num_new - len(entries))
        self.num_reported += num_new
        if self.params.method == "none":
            return {"led_params": self.applied}
        self.num_unreported += entries.count(None)
        rows = [entry if isinstance(entry, tuple) else (entry or 0,) for entry in entries]
        for flags, *_ in rows:
            self._count(flags)
        columns = _columns(rows) if self.params.trace else {}
        return {"led_params": self.applied, "led_stats": self._stats(), **columns}

    def _count(self, flags: int) -> None:
        self.num_active += flags & ACTIVE != 0
        self.num_thinking += flags & THINKING != 0
        self.num_fallbacks += flags & FALLBACK != 0
        if flags & EXPLORED:
            self.num_explored += 1
            self.total_depth += flags >> DEPTH_SHIFT

    def _stats(self) -> dict[str, Any]:
        unreported = {"unreported": self.num_unreported} if self.num_unreported else {}
        return {
            "led_tokens": self.num_active,
            "thinking_tokens": self.num_thinking,
            "explored_tokens": self.num_explored,
            "mean_depth": self.total_depth / self.num_explored if self.num_explored else None,
            "fallbacks": self.num_fallbacks,
            **unreported,
        }


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """The trace lists of some tokens, each flags and, where LED has traced it, trace values."""
    columns: dict[str, list[Any]] = {key: [] for key in TRACE_KEYS}
    for flags, *values in rows:
        is_active = bool(flags & ACTIVE) and not flags & FALLBACK
        head = [bool(flags & THINKING), bool(flags & EXPLORED), flags >> DEPTH_SHIFT if is_active else None]
        for column, value in zip(columns.values(), [*head, *(values or NO_VALUES)], strict=True):
            column.append(value)
    return columns
