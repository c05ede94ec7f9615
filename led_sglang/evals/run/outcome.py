"""The message at a run's end: how many requests got no answer, how many answers no verdict, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from led_sglang.evals.grade.graders import FAULTS, REFUSED, TIMED_OUT
from led_sglang.evals.records.results import Cell
from led_sglang.evals.records.store import Sample

__all__ = ["Reasons", "message"]

UNANSWERED = (REFUSED, TIMED_OUT)
MAX_REASONS = 5  # that are shown
MAX_KEPT = 1000  # groups of messages


class Reasons:
    """Messages of faults, grouped: two that differ in their numbers alone are one group, shown by its first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, sample: Sample) -> None:
        if sample.outcome not in FAULTS:
            return
        group = re.sub(r"\d+", "#", f"{sample.outcome} {sample.detail}")
        if group in self._counts or len(self._counts) < MAX_KEPT:
            self._counts[group] += 1
            self._examples.setdefault(group, f"{sample.outcome}: {sample.detail}")

    def lines(self) -> list[str]:
        """The most frequent first."""
        reported = [f"  {count} x {self._examples[group]}" for group, count in self._counts.most_common(MAX_REASONS)]
        more = len(self._counts) - len(reported)
        return [*reported, f"  and {more} other reasons"] if more > 0 else reported


def message(cells: Iterable[Cell], reasons: Reasons) -> tuple[str, bool]:
    """The message about the run's cells, empty if there is none, and whether every request was answered.

    It did where every request was answered and, if there are answers, one of them at least could be judged.
    """
    found = list(cells)
    total, unanswered = sum(cell.num_samples for cell in found), sum(cell.count(*UNANSWERED) for cell in found)
    unjudged = sum(cell.faults for cell in found) - unanswered
    parts = []
    if unanswered:
        parts.append(f"{unanswered} of {total} requests got no answer")
    if unjudged:
        parts.append(f"{unjudged} of {total - unanswered} answers got no verdict")
    if not parts:
        return "", True
    lines = reasons.lines() or ["  the reasons are in the samples of an earlier sitting"]
    is_done = not unanswered and unjudged < total
    return "\n".join([f"{', '.join(parts)}; they count as not right:", *lines]), is_done
