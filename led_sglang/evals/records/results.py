"""From the samples on disk to one row of counts for every question: memory grows with questions, never with samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from led_sglang.cli import files
from led_sglang.evals.errors import EvalError
from led_sglang.evals.grade.graders import FAULTS, NO_ANSWER, RIGHT, WRONG
from led_sglang.evals.records import statistics
from led_sglang.evals.records.statistics import Floats
from led_sglang.evals.records.store import (
    COUNTS,
    SAMPLES,
    CellKey,
    Sample,
    lines_locked,
    read_lines,
    read_settings,
    replace_text,
)

__all__ = ["Cell", "Cells", "compact", "difference", "read_cells", "read_runs", "slopes"]


@dataclass
class Counts:
    """Of one question."""

    done: int = 0  # one bit for each finished sample
    right: int = 0

    @property
    def total(self) -> int:
        return self.done.bit_count()


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

    def has(self, question: str, sample: int) -> bool:
        counts = self.questions.get(question)
        return counts is not None and bool(counts.done >> sample & 1)

    def add(self, sample: Sample) -> None:
        """Once: a sample that was there before is not counted again."""
        if self.has(sample.question, sample.sample):
            return
        counts = self.questions.setdefault(sample.question, Counts())
        counts.done |= 1 << sample.sample
        counts.right += sample.outcome == RIGHT
        _add(self.outcomes, {sample.outcome: 1})
        if sample.outcome == WRONG and sample.detail:
            _add(self.details, {sample.detail.partition(" in test ")[0]: 1})
        self.tokens += sample.tokens
        self.wall_s += sample.wall_s
        self.cut_off += sample.finish == "length"

    def merged(self, other: Cell) -> Cell:
        """With another run's counts of the same cell. Raises EvalError where sums would have to be taken apart."""
        if self._is_within(other):
            return other
        if other._is_within(self):
            return self
        both = Cell(self.key)
        for cell in (self, other):
            for question, counts in cell.questions.items():
                own = both.questions.setdefault(question, Counts())
                if own.done & counts.done:
                    raise EvalError(f"{self.key}, question {question}: in two compacted runs that share samples")
                own.done |= counts.done
                own.right += counts.right
            _add(both.outcomes, cell.outcomes)
            _add(both.details, cell.details)
            both.tokens += cell.tokens
            both.wall_s += cell.wall_s
            both.cut_off += cell.cut_off
        return both

    def _is_within(self, other: Cell) -> bool:
        none = Counts()
        return not any(c.done & ~other.questions.get(question, none).done for question, c in self.questions.items())

    @property
    def num_samples(self) -> int:
        return sum(self.outcomes.values())

    def count(self, *outcomes: str) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in outcomes)

    def share(self, *outcomes: str) -> float:
        return self.count(*outcomes) / self.num_samples

    @property
    def no_answer(self) -> float:
        return self.share(NO_ANSWER)

    @property
    def faults(self) -> int:
        return self.count(*FAULTS)

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


def read_runs(folders: Sequence[Path]) -> Cells:
    """Finished samples of runs, compacted or not, each once; none where there is no run. Raises CommandError."""
    cells: Cells = {}
    for folder in folders:
        for key, cell in read_counts(folder / COUNTS).items():
            cells[key] = cells[key].merged(cell) if key in cells else cell
    for folder in folders:
        for sample in read_lines(folder / SAMPLES):
            cells.setdefault(sample.cell, Cell(sample.cell)).add(sample)
    return cells


def read_cells(folders: Sequence[Path]) -> Cells:
    """Of runs that are there. Raises CommandError where a folder holds no samples."""
    for folder in folders:
        if not (folder / SAMPLES).exists() and not (folder / COUNTS).exists():
            raise EvalError(f"{folder} holds no run: {SAMPLES} is missing")
    cells = read_runs(folders)
    if not cells:
        raise EvalError(f"there is no finished sample to report on in {', '.join(map(str, folders))}")
    return cells


def compact(folder: Path) -> None:
    """Write what the run's samples add up to and remove their lines: small enough for a repository.

    The run can be reported on and continued as before. Raises CommandError, also where it is being written to.
    """
    read_settings(folder)  # or it is no run
    with lines_locked(folder):
        cells = read_runs([folder]).values()
        ids = {cell.key.task: set[str]() for cell in cells}
        for cell in cells:
            ids[cell.key.task].update(cell.questions)
        ordered = {task: sorted(names) for task, names in ids.items()}
        rows = [{"ids": ordered}, *(_to_json(cell, ordered[cell.key.task]) for cell in cells)]
        replace_text(folder / COUNTS, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
        (folder / SAMPLES).unlink()


def _to_json(cell: Cell, ids: list[str]) -> dict[str, Any]:
    """`done` and `right` in the order of `ids`; one number where all are the same."""
    counts = [cell.questions.get(question, Counts()) for question in ids]
    kept = {name: getattr(cell, name) for name in ("outcomes", "details", "tokens", "wall_s", "cut_off")}
    done = [c.done for c in counts]
    return {
        **asdict(cell.key),
        **kept,
        "done": done[0] if len(set(done)) == 1 else done,
        "right": [c.right for c in counts],
    }


def read_counts(path: Path) -> Cells:
    """What `compact` wrote; no cells where it did not. Raises CommandError for a broken file."""
    if not path.exists():
        return {}
    cells: Cells = {}
    ids_of: dict[str, list[str]] | None = None
    for where, row in files.json_lines(path):
        try:
            if ids_of is None:
                ids_of = {task: list(ids) for task, ids in row["ids"].items()}
                continue
            cell = _from_json(row, ids_of)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvalError(f"{where}: not what compact writes: {error!r}") from error
        cells[cell.key] = cell
    if ids_of is None:
        raise EvalError(f"{path} is damaged: it is empty")
    return cells


def _from_json(row: dict[str, Any], ids_of: dict[str, list[str]]) -> Cell:
    """Raises ValueError, KeyError, TypeError, AttributeError."""
    key = CellKey(str(row.pop("task")), str(row.pop("method")), float(row.pop("temperature")))
    ids, done, right = ids_of[key.task], row.pop("done"), row.pop("right")
    every = done if isinstance(done, list) else [done] * len(ids)
    counts = {}
    for question, bits, num_right in zip(ids, every, right, strict=True):
        if type(bits) is not int or type(num_right) is not int or not 0 <= num_right <= bits.bit_count() or bits < 0:
            raise ValueError(f"question {question}: done {bits!r}, right {num_right!r}")
        if bits:
            counts[question] = Counts(bits, num_right)
    cell = Cell(key, counts, **row)
    numbers = (cell.tokens, cell.wall_s, cell.cut_off, *cell.outcomes.values(), *cell.details.values())
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"outcomes, details, tokens, wall_s and cut_off must hold numbers, not {numbers}")
    return cell


def _add(sums: dict[str, int], more: dict[str, int]) -> None:
    for key, count in more.items():
        sums[key] = sums.get(key, 0) + count


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
