"""Figures like the paper's 1, 2, 4, 5 and 7: for print and colour-blind readers (colour, marker and line differ)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from led_sglang.evals.records import statistics
from led_sglang.evals.report.tables import Experiment

__all__ = ["all_figures", "layer_entropy", "style", "to_svg"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MAX_LINES = 7  # more lines look alike; the tables have them all


def style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "linestyle": LINES[index % 4]}


def _new(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_svg(figure: Any) -> str:
    """The same data gives the same file: no date in it, ids from a fixed salt."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "led_sglang", "svg.fonttype": "path", "font.size": 9}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def _methods(experiment: Experiment) -> list[str]:
    """Those with the most samples first, as they reach the largest n; depths have a figure of their own."""

    def most(method: str) -> int:
        return max((cell.ns()[-1] for cell in experiment.cells.values() if cell.key.method == method), default=0)

    return sorted((name for name in experiment.methods if not _depth_of(name)), key=most, reverse=True)[:MAX_LINES]


def _depth_of(method: str) -> int | None:
    match = re.fullmatch(r"led:depth=(\d+)", method)
    return int(match[1]) if match else None


def accuracy_by_temperature(experiment: Experiment, task: str) -> Any:
    """Figure 1: does a higher temperature still buy pass@n?"""
    temperatures = experiment.temperatures
    if len(temperatures) < 2:
        return None
    figure, axes = _new(f"{task}: accuracy and temperature", "temperature", "accuracy (%)")
    most = max(statistics.NS)
    cells_of = {m: [c for t in temperatures if (c := experiment.cell(task, m, t))] for m in experiment.methods}
    lines = {method: cells for method, cells in cells_of.items() if len(cells) > 1}
    for index, (method, cells) in enumerate(list(lines.items())[:MAX_LINES]):
        for n in dict.fromkeys((1, min([most, *(cell.ns()[-1] for cell in cells)]))):
            x, y = [cell.key.temperature for cell in cells], [100 * cell.accuracy(n) for cell in cells]
            look = {**style(index), "linestyle": "-" if n == 1 else "--"}
            axes.plot(x, y, label=f"{method} pass@{n}", **look)
    axes.legend(fontsize=7)
    return figure


def pass_at_n(experiment: Experiment, task: str, temperature: float) -> Any:
    """Figure 7: pass@n as n grows."""
    figure, axes = _new(f"{task}: pass@n at temperature {temperature:g}", "n", "pass@n (%)")
    for index, method in enumerate(_methods(experiment)):
        cell = experiment.cell(task, method, temperature)
        if cell is not None:
            axes.plot(cell.ns(), [100 * cell.accuracy(n) for n in cell.ns()], label=method, **style(index))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(statistics.NS), [str(n) for n in statistics.NS])
    axes.legend(fontsize=7)
    return figure


def depth_sweep(experiment: Experiment, task: str, temperature: float) -> Any:
    """Figure 5: accuracy at every exploration depth, plain sampling as a level line."""
    found = {depth: method for method in experiment.methods if (depth := _depth_of(method)) is not None}
    cells = [(d, c) for d, m in sorted(found.items()) if (c := experiment.cell(task, m, temperature)) is not None]
    if len(cells) < 2:
        return None
    figure, axes = _new(f"{task}: exploration depth at temperature {temperature:g}", "depth d", "accuracy (%)")
    most = min(cell.ns()[-1] for _, cell in cells)
    base = experiment.cell(task, experiment.baseline, temperature)
    for index, n in enumerate(dict.fromkeys((1, most))):
        values = [100 * cell.accuracy(n) for _, cell in cells]
        errors = [196 * statistics.standard_error(cell.values(n)) for _, cell in cells]
        axes.errorbar([d for d, _ in cells], values, yerr=errors, capsize=2, label=f"LED pass@{n}", **style(index))
        if base is not None and n in base.ns():
            name = f"{experiment.baseline} pass@{n}"
            axes.axhline(100 * base.accuracy(n), color=COLOURS[index], linestyle=":", label=name)
    axes.legend(fontsize=7)
    return figure


def layer_entropy(analyses: dict[str, dict[str, Any]]) -> Any:
    """Figure 2: entropy of every layer's posterior."""
    figure, axes = _new("Entropy of each layer's posterior", "layer", "entropy (nats)")
    for index, (name, analysis) in enumerate(analyses.items()):
        layers = analysis["layers"]
        x, y = [row["layer"] for row in layers], [row["entropy"] for row in layers]
        axes.plot(x, y, label=name, markersize=3, **style(index))
    axes.legend(fontsize=7)
    return figure


def layer_coverage(name: str, analysis: dict[str, Any]) -> Any:
    """Figure 4: how much of the final layer's top k each layer has among its own."""
    figure, axes = _new(f"{name}: top-k coverage of each layer", "layer", "coverage r_k (%)")
    layers = analysis["layers"]
    for index, k in enumerate(analysis["ks"]):
        y = [100 * row["coverage"][str(k)] for row in layers]
        axes.plot([row["layer"] for row in layers], y, label=f"k = {k}", markersize=3, **style(index))
    axes.legend(fontsize=7)
    return figure


def all_figures(experiment: Experiment, analyses: dict[str, dict[str, Any]]) -> dict[str, str]:
    """File name without ending -> SVG."""
    makers: dict[str, Callable[[], Any]] = {}
    for task in experiment.tasks:
        makers[f"temperature-{task}"] = partial(accuracy_by_temperature, experiment, task)
        for t in experiment.temperatures:
            makers[f"pass-at-n-{task}-t{t:g}"] = partial(pass_at_n, experiment, task, t)
            makers[f"depth-{task}-t{t:g}"] = partial(depth_sweep, experiment, task, t)
    if analyses:
        makers["layer-entropy"] = partial(layer_entropy, analyses)
    for name, analysis in analyses.items():
        safe = re.sub(r"[^\w.-]+", "-", name)
        makers[f"layer-coverage-{safe}"] = partial(layer_coverage, name, analysis)
    made = {name: make() for name, make in makers.items()}
    return {name: to_svg(figure) for name, figure in made.items() if figure is not None}
