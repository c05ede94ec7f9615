"""From the samples on disk to one row of counts for every question: memory grows with questions, never with samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from led_sglang.evals import statistics
from led_sglang.evals.errors import EvalError
from led_sglang.evals.graders import FAULTS, NO_ANSWER, RIGHT, WRONG
from led_sglang.evals.statistics import Floats
from led_sglang.evals.store import SAMPLES, CellKey, Done, Sample, read_lines


@dataclass
class Counts:
    """Of one question."""

    total: int = 0
    right: int = 0


@dataclass
class Cell:
    """Of one task, method and temperature."""

    key: CellKey
    questions: dict[str, Counts] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    details: dict[str, int] = field(default_factory=dict)  # how programs failed
    tokens: int = 0
    wall_s: float = 0.0
    cut_off: int = 0  # ended by the token limit

    def add(self, sample: Sample) -> None:
        counts = self.questions.setdefault(sample.question, Counts())
        counts.total += 1
        counts.right += sample.outcome == RIGHT
        self.outcomes[sample.outcome] = self.outcomes.get(sample.outcome, 0) + 1
        if sample.outcome == WRONG and sample.detail:
            reason = sample.detail.partition(" in test ")[0]
            self.details[reason] = self.details.get(reason, 0) + 1
        self.tokens += sample.tokens
        self.wall_s += sample.wall_s
        self.cut_off += sample.finish == "length"

    @property
    def num_samples(self) -> int:
        return sum(self.outcomes.values())

    def share(self, *outcomes: str) -> float:
        return sum(self.outcomes.get(outcome, 0) for outcome in outcomes) / self.num_samples

    @property
    def no_answer(self) -> float:
        return self.share(NO_ANSWER)

    @property
    def faults(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in FAULTS)

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.num_samples

    @property
    def min_samples(self) -> int:
        return min(counts.total for counts in self.questions.values())

    @cached_property
    def ids(self) -> list[str]:
        return sorted(self.questions)

    def ns(self) -> list[int]:
        """The n of pass@n that every question has samples for."""
        return [n for n in statistics.NS if n <= self.min_samples]

    def values(self, n: int, ids: Iterable[str] | None = None) -> Floats:
        """pass@n of each question, in the order of `ids`."""
        rows = [self.questions[question] for question in (self.ids if ids is None else ids)]
        return statistics.pass_values(n, [row.total for row in rows], [row.right for row in rows])

    def accuracy(self, n: int) -> float:
        return float(self.values(n).mean())


Cells = dict[CellKey, Cell]


def read_cells(folders: Iterable[Path]) -> Cells:
    """Raises EvalError where a folder holds no samples."""
    cells: Cells = {}
    done = Done()
    for folder in folders:
        path = folder / SAMPLES
        if not path.is_file():
            raise EvalError(f"{folder} holds no run: {SAMPLES} is missing")
        for sample in read_lines(path):
            if done.add(sample.cell, sample.question, sample.sample):
                cells.setdefault(sample.cell, Cell(sample.cell)).add(sample)
    if not cells:
        raise EvalError("there is no finished sample to report on")
    return cells


def common_ids(*cells: Cell) -> list[str]:
    """Questions that all have: a difference is paired over these."""
    shared = set(cells[0].ids).intersection(*(cell.ids for cell in cells[1:]))
    return sorted(shared)


def difference(one: Cell, other: Cell, n: int) -> Floats:
    """pass@n of `one` minus `other`, question by question."""
    ids = common_ids(one, other)
    if not ids:
        raise EvalError(f"{one.key} and {other.key} have no question in common")
    return one.values(n, ids) - other.values(n, ids)


def slopes(by_temperature: list[Cell], ns: list[int]) -> Floats:
    """Each question's share in alpha: their mean is alpha, so that the bootstrap over questions applies to it."""
    ids = common_ids(*by_temperature)
    if not ids:
        raise EvalError(f"{by_temperature[0].key}: no question was asked at all temperatures")
    grid = np.stack([[cell.values(n, ids) for n in ns] for cell in by_temperature])  # (temperatures, ns, Q)
    weights = statistics.slope_weights(len(by_temperature), len(ns))
    return np.asarray((grid * weights[:, :, None]).sum(axis=(0, 1)), dtype=np.float64)  # (Q,)
