"""Live accuracy of every cell: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from led_sglang.evals.graders import FAULTS, NO_ANSWER, RIGHT
from led_sglang.evals.store import CellKey, Sample

LINE_EVERY_S = 30.0


@dataclass
class Tally:
    total: int
    bar: TaskID
    done: int = 0
    right: int = 0
    no_answer: int = 0
    faults: int = 0
    tokens: int = 0

    def add(self, sample: Sample) -> None:
        self.done += 1
        self.right += sample.outcome == RIGHT
        self.no_answer += sample.outcome == NO_ANSWER
        self.faults += sample.outcome in FAULTS
        self.tokens += sample.tokens

    def text(self) -> str:
        if not self.done:
            return "-"
        shares = f"pass@1 {self.right / self.done:6.1%}, no answer {self.no_answer / self.done:5.1%}"
        return shares + (f", {self.faults} faults" if self.faults else "")


class LiveTable:
    def __init__(self, cells: dict[CellKey, int], is_quiet: bool = False) -> None:
        """`cells`: samples wanted of each."""
        self._console = Console(stderr=True, quiet=is_quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._has_bars = self._console.is_terminal and not is_quiet
        self._progress = Progress(*columns, console=self._console, disable=not self._has_bars, refresh_per_second=4)
        self._is_quiet = is_quiet
        self.tallies = {
            cell: Tally(total, self._progress.add_task(self._name(cell), total=total, live="-"))
            for cell, total in cells.items()
        }
        self._last_line = time.monotonic()

    @staticmethod
    def _name(cell: CellKey) -> str:
        return f"{cell.task} {cell.method} t={cell.temperature:g}"

    def add(self, sample: Sample) -> None:
        tally = self.tallies.get(sample.cell)
        if tally is None:
            return
        tally.add(sample)
        self._progress.update(tally.bar, completed=tally.done, live=tally.text())
        if not self._has_bars and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.print_lines()

    def print_lines(self) -> None:
        if not self._is_quiet:
            for cell, tally in self.tallies.items():
                print(f"{self._name(cell)}: {tally.done}/{tally.total} {tally.text()}", file=sys.stderr, flush=True)

    def __enter__(self) -> LiveTable:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if not self._has_bars:
            self.print_lines()
