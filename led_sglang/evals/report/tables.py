"""The tables, shaped like the paper's Tables 1, 2, 3 and 5; all accuracies in per cent, all differences in points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from led_sglang.evals.records import results, statistics
from led_sglang.evals.records.results import Cell, Cells
from led_sglang.evals.records.statistics import Floats, Interval
from led_sglang.evals.records.store import CellKey

__all__ = ["BASELINE", "REFERENCE", "Experiment", "Table", "all_tables", "alpha_of", "main_table", "method_order"]

NO_VALUE = "–"
BASELINE, REFERENCE = "cot", "led"  # the methods that others are compared with by default


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = "|---" + "|---:" * (len(self.header) - 1) + "|"
        body = [line(self.header), rule, *map(line, self.rows)]
        return f"## {self.title}\n\n{self.note}\n\n" + "\n".join(body) + "\n"


@dataclass(frozen=True)
class Experiment:
    """All cells, and what is compared with what."""

    cells: Cells
    baseline: str = BASELINE
    reference: str = REFERENCE
    seed: int = 0
    num_resamples: int = statistics.NUM_RESAMPLES

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(key.task for key in self.cells))

    @property
    def methods(self) -> list[str]:
        """Baseline and reference first, the rest in the order of the run."""
        found = sorted({key.method for key in self.cells}, key=method_order)
        return [name for name in dict.fromkeys((self.baseline, self.reference, *found)) if name in found]

    @property
    def temperatures(self) -> list[float]:
        return sorted({key.temperature for key in self.cells})

    def cell(self, task: str, method: str, temperature: float) -> Cell | None:
        return self.cells.get(CellKey(task, method, temperature))

    def row(self, method: str, temperature: float) -> list[Cell | None]:
        return [self.cell(task, method, temperature) for task in self.tasks]

    def bootstrap(self, strata: list[Floats]) -> Interval:
        return statistics.bootstrap_mean(strata, self.seed, self.num_resamples)

    def compare(self, method: str, other: str, temperature: float, n: int, task: str | None = None) -> Interval | None:
        """pass@n of `method` minus `other`, averaged over tasks; None where a cell or the samples are missing."""
        tasks = [task] if task else self.tasks
        pairs = [(self.cell(t, method, temperature), self.cell(t, other, temperature)) for t in tasks]
        strata: list[Floats] = []
        for one, base in pairs:
            if one is None or base is None or n not in one.ns() or n not in base.ns():
                return None
            strata.append(results.difference(one, base, n))
        return self.bootstrap(strata)


def method_order(name: str) -> list[object]:
    """`led:depth=4` before `led:depth=12`: digits compare as numbers."""
    parts = name.replace("=", " = ").replace(",", " , ").split()
    return [(1, float(part), "") if part.isdigit() else (0, 0.0, part) for part in parts]


def percent(value: float) -> str:
    return NO_VALUE if math.isnan(value) else f"{100 * value:.2f}"


def points(interval: Interval | None) -> str:
    """A difference with its interval; bold where the interval excludes zero."""
    if interval is None:
        return NO_VALUE
    text = f"{100 * interval.mean:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
    return f"**{text}**" if interval.excludes_zero else text


def _rows(experiment: Experiment, make: Callable[[str, float], list[str]], methods: list[str]) -> list[list[str]]:
    return [
        [method, f"{temperature:g}", *make(method, temperature)]
        for temperature in experiment.temperatures
        for method in methods
        if any(experiment.row(method, temperature))
    ]


def _largest_n(experiment: Experiment) -> int:
    return max((cell.ns()[-1] for cell in experiment.cells.values()), default=1)


def _shown_ns(experiment: Experiment) -> list[int]:
    """1, the largest n that every cell has samples for, and the largest that any has."""
    common = min((cell.ns()[-1] for cell in experiment.cells.values()), default=1)
    return list(dict.fromkeys((1, common, _largest_n(experiment))))


def main_table(experiment: Experiment) -> Table:
    """Table 1."""
    ns = _shown_ns(experiment)

    def make(method: str, temperature: float) -> list[str]:
        cells, columns = experiment.row(method, temperature), []
        for cell in cells:
            for n in ns:
                if cell is None or n not in cell.ns():
                    columns.append(NO_VALUE)
                    continue
                error = f" ± {percent(statistics.standard_error(cell.values(1)))}" if n == 1 else ""
                columns.append(percent(cell.accuracy(n)) + error)
        for n in ns if len(cells) > 1 else ():
            complete = [cell for cell in cells if cell is not None and n in cell.ns()]
            is_full = len(complete) == len(cells)
            columns.append(percent(sum(c.accuracy(n) for c in complete) / len(complete)) if is_full else NO_VALUE)
        return columns

    names = [*experiment.tasks, "average"] if len(experiment.tasks) > 1 else experiment.tasks
    header = ["method", "temperature", *(f"{name} pass@{n}" for name in names for n in ns)]
    note = (
        "Per cent. pass@1 is the mean over a question's samples, ± its standard error over questions; "
        "pass@n is the unbiased estimate, – where too few samples were drawn."
    )
    return Table("Table 1: accuracy", note, header, _rows(experiment, make, experiment.methods))


def difference_table(experiment: Experiment) -> Table:
    """The differences of Table 1, with their intervals."""
    ns, baseline = _shown_ns(experiment), experiment.baseline
    scopes: list[str | None] = [*experiment.tasks, None] if len(experiment.tasks) > 1 else [*experiment.tasks]

    def make(method: str, temperature: float) -> list[str]:
        return [points(experiment.compare(method, baseline, temperature, n, task)) for task in scopes for n in ns]

    header = ["method", "temperature", *(f"{task or 'average'} Δ pass@{n}" for task in scopes for n in ns)]
    note = (
        f"Points, method minus {baseline}, with 95 % intervals: paired bootstrap over questions, "
        f"{experiment.num_resamples:,} resamples, seed {experiment.seed}. Bold: the interval excludes zero, "
    )
    methods = [method for method in experiment.methods if method != baseline]
    rows = _rows(experiment, make, methods)
    count = sum(cell != NO_VALUE for row in rows for cell in row[2:])
    note += f"as one in twenty of these {count} would by chance alone."
    return Table(f"Differences from {baseline}", note, header, rows)


def temperature_table(experiment: Experiment) -> Table:
    """Table 2: pass@n at every temperature, and the slope alpha."""
    ns = [n for n in statistics.NS if n <= _largest_n(experiment)]
    rows = []
    for task in experiment.tasks:
        for method in experiment.methods:
            cells = [c for t in experiment.temperatures if (c := experiment.cell(task, method, t)) is not None]
            alpha = alpha_of(experiment, cells)
            for cell in cells:
                shown = [percent(cell.accuracy(n)) if n in cell.ns() else NO_VALUE for n in ns]
                rows.append([task, method, f"{cell.key.temperature:g}", *shown, points(alpha)])
    note = (
        "Per cent. α is the slope along the temperature index of the least-squares plane through pass@n over "
        "(temperature index, n index), in points a step, over all temperatures of the row's method; intervals as above."
    )
    header = ["task", "method", "temperature", *(f"pass@{n}" for n in ns), "α"]
    return Table("Table 2: pass@n and temperature", note, header, rows)


def alpha_of(experiment: Experiment, cells: list[Cell]) -> Interval | None:
    if len(cells) < 2:
        return None
    ns = [n for n in statistics.NS if all(n in cell.ns() for cell in cells)]
    return experiment.bootstrap([results.slopes(cells, ns)])


def length_table(experiment: Experiment) -> Table:
    """Table 3: what it costs, and answers that never came."""
    rows = []
    for task in experiment.tasks:
        for temperature in experiment.temperatures:
            for method in experiment.methods:
                cell = experiment.cell(task, method, temperature)
                if cell is not None:
                    rows.append([task, method, f"{temperature:g}", *_costs(cell)])
    header = ["task", "method", "temperature", "questions", "samples", "tokens/sample", "tokens", "s/sample"]
    header += ["wrong", "no answer", "cut off", "faults"]
    note = (
        "tokens/sample is the generation length; s/sample the time from request to answer at the run's concurrency. "
        "Of all samples, in per cent: wrong, without an answer, cut off by the token limit. faults counts samples "
        "whose judge or request failed (they count as not right)."
    )
    return Table("Table 3: generation length and cost", note, header, rows)


def _costs(cell: Cell) -> list[str]:
    sizes = [str(len(cell.questions)), str(cell.num_samples), f"{cell.mean_tokens:.1f}", f"{cell.tokens:,}"]
    shares = [percent(cell.share("wrong")), percent(cell.no_answer), percent(cell.cut_off / cell.num_samples)]
    return [*sizes, f"{cell.wall_s / cell.num_samples:.2f}", *shares, str(cell.faults)]


def ablation_table(experiment: Experiment) -> Table | None:
    """Table 5: every variant of the reference method; None where there is none."""
    reference = experiment.reference
    variants = [method for method in experiment.methods if method.startswith(reference + ":")]
    if not variants or reference not in experiment.methods:
        return None
    ns = _shown_ns(experiment)

    def mean(cells: list[Cell], n: int) -> str:
        usable = [cell.accuracy(n) for cell in cells if n in cell.ns()]
        return percent(sum(usable) / len(usable)) if usable else NO_VALUE

    def make(method: str, temperature: float) -> list[str]:
        cells = [cell for cell in experiment.row(method, temperature) if cell is not None]
        accuracies = [mean(cells, n) for n in ns]
        length = f"{sum(c.mean_tokens for c in cells) / len(cells):.1f}"
        same = method == reference
        deltas = [NO_VALUE if same else points(experiment.compare(method, reference, temperature, n)) for n in ns]
        return [*accuracies, length, *deltas]

    header = ["method", "temperature", *(f"pass@{n}" for n in ns), "tokens/sample", *(f"Δ pass@{n}" for n in ns)]
    note = f"Average over tasks; differences from {reference} in points, intervals as above."
    return Table("Table 5: ablations", note, header, _rows(experiment, make, [reference, *variants]))


def failure_table(experiment: Experiment) -> Table | None:
    """How programs failed; None where no task runs programs."""
    cells = [cell for cell in experiment.cells.values() if cell.details]
    reasons = sorted({reason for cell in cells for reason in cell.details})
    if not reasons:
        return None
    rows = [
        [cell.key.task, cell.key.method, f"{cell.key.temperature:g}", *(str(cell.details.get(r, 0)) for r in reasons)]
        for cell in cells
    ]
    note = "Wrong samples by the way their first failing test ended."
    return Table("How wrong answers failed", note, ["task", "method", "temperature", *reasons], rows)


def all_tables(experiment: Experiment) -> list[Table]:
    tables = [
        main_table(experiment),
        difference_table(experiment),
        temperature_table(experiment),
        length_table(experiment),
        ablation_table(experiment),
        failure_table(experiment),
    ]
    return [table for table in tables if table is not None and table.rows]
