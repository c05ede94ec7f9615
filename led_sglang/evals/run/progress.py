"""Live accuracy of every cell: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from led_sglang.evals.grade.graders import RIGHT
from led_sglang.evals.records.results import Cell
from led_sglang.evals.records.store import CellKey

__all__ = ["LiveTable"]

LINE_EVERY_S = 30.0


def live_text(cell: Cell) -> str:
    shares = f"pass@1 {cell.share(RIGHT):6.1%}, no answer {cell.no_answer:5.1%}"
    return shares + (f", {cell.faults} faults" if cell.faults else "")


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
        self._num_expected = cells
        self._bars = {cell: self._progress.add_task(self._name(cell), total=n, live="-") for cell, n in cells.items()}
        self._shown: dict[CellKey, Cell] = {}
        self._last_line = time.monotonic()

    @staticmethod
    def _name(cell: CellKey) -> str:
        return f"{cell.task} {cell.method} t={cell.temperature:g}"

    def show(self, cell: Cell) -> None:
        """What is finished of a cell; cells that this run does not request are not shown."""
        if cell.key not in self._bars:
            return
        self._shown[cell.key] = cell
        self._progress.update(self._bars[cell.key], completed=cell.num_samples, live=live_text(cell))
        if not self._has_bars and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.print_lines()

    def print_lines(self) -> None:
        if not self._is_quiet:
            for key, num_expected in self._num_expected.items():
                cell = self._shown.get(key)
                text = f"0/{num_expected} -" if cell is None else f"{cell.num_samples}/{num_expected} {live_text(cell)}"
                print(f"{self._name(key)}: {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> LiveTable:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if not self._has_bars:
            self.print_lines()
