"""Writes the report of one or several runs: report.md, figures/*.svg, summary.json and one self-contained page."""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from led_sglang.cli import files
from led_sglang.evals.errors import EvalError
from led_sglang.evals.records import results, statistics
from led_sglang.evals.records.store import read_settings
from led_sglang.evals.report import provenance
from led_sglang.evals.report.figures import all_figures
from led_sglang.evals.report.tables import BASELINE, REFERENCE, Experiment, Table, all_tables, method_order

__all__ = ["read_analyses", "write_report"]

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #111;
  background: #fff }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }} thead th {{ border-bottom: 2px solid #111 }}
img {{ max-width: 100%; height: auto }} .figures {{ display: flex; flex-wrap: wrap; gap: 1rem }}
pre {{ background: #f4f4f4; padding: .6rem; overflow-x: auto }}
</style></head><body>
{body}
</body></html>
"""


def warnings(experiment: Experiment) -> list[str]:
    """Sentences that qualify the report's numbers: faults, missing samples, changed settings."""
    found = []
    for cell in experiment.cells.values():
        name = f"{cell.key.task}, {cell.key.method}, temperature {cell.key.temperature:g}"
        if len({counts.total for counts in cell.questions.values()}) > 1:
            found.append(f"{name}: not every question has all samples; pass@n is estimated from {cell.min_samples} up.")
        if cell.faults:
            found.append(f"{name}: {cell.faults} samples failed in request or judge and count as not right.")
    for task in experiment.tasks:
        sizes = {len(cell.questions) for key, cell in experiment.cells.items() if key.task == task}
        if len(sizes) > 1:
            found.append(f"{task}: methods answered {min(sizes)} to {max(sizes)} questions; the run is not finished.")
    return found


def summary(experiment: Experiment) -> list[dict[str, Any]]:
    """The numbers for programs: one object for every cell."""
    return [
        {
            "task": key.task,
            "method": key.method,
            "temperature": key.temperature,
            "questions": len(cell.questions),
            "samples": cell.num_samples,
            "pass_at": {str(n): round(cell.accuracy(n), 6) for n in cell.ns()},
            "standard_error": None if len(cell.questions) < 2 else round(statistics.standard_error(cell.values(1)), 6),
            "outcomes": dict(sorted(cell.outcomes.items())),
            "tokens": cell.tokens,
            "tokens_per_sample": round(cell.mean_tokens, 3),
            "wall_s": round(cell.wall_s, 3),
        }
        for key, cell in sorted(experiment.cells.items())
    ]


@dataclass(frozen=True)
class Report:
    """The content of both forms, in order."""

    title: str
    overview: list[str]
    tables: list[Table]
    figures: dict[str, str]  # SVG by name
    runs: Table
    applied: list[str]
    command: str


def markdown(report: Report) -> str:
    parts = [f"# {report.title}\n", _markdown_list(report.overview)]
    parts += [table.markdown() for table in report.tables]
    if report.figures:
        parts.append("## Figures\n\n" + "\n".join(f"![{name}](figures/{name}.svg)" for name in report.figures) + "\n")
    parts += [report.runs.markdown(), "What the server applied:\n", _markdown_list(report.applied)]
    return "\n".join([*parts, f"Made by\n\n    {report.command}\n"])


def _markdown_list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) + "\n"


def page(report: Report) -> str:
    parts = [f"<h1>{html.escape(report.title)}</h1>", _html_list(report.overview)]
    parts += map(_html_table, report.tables)
    if report.figures:
        parts.append('<h2>Figures</h2><div class="figures">')
        for name, svg in report.figures.items():
            data = base64.b64encode(svg.encode()).decode()
            parts.append(f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">')
        parts.append("</div>")
    parts += [_html_table(report.runs), "<p>What the server applied:</p>", _html_list(report.applied)]
    parts.append(f"<p>Made by</p><pre>{html.escape(report.command)}</pre>")
    return PAGE.format(title=html.escape(report.title), body="\n".join(parts))


def _html_list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    return (
        f"<h2>{html.escape(table.title)}</h2><p>{_inline(table.note)}</p>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _inline(text: str) -> str:
    """The little Markdown that cells and lines hold."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


def read_analyses(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """By the model's name. Raises CommandError."""
    analyses: dict[str, dict[str, Any]] = {}
    for path in paths:
        analysis = files.json_document(path)
        try:
            check_analysis(analysis)
        except (KeyError, TypeError, ValueError) as error:
            raise EvalError(f"--analysis {path}: not a file of led_sglang.analysis: {error!r}") from error
        analyses[analysis["name"]] = analysis
    return analyses


def check_analysis(analysis: dict[str, Any]) -> None:
    """What the lines and figures of a report read. Raises KeyError, TypeError, ValueError."""
    numbers = [analysis[key] for key in ("exploration_rate", "positions", "temperature")]
    for row in analysis["layers"]:
        numbers += [row["layer"], row["entropy"], *(row["coverage"][str(k)] for k in analysis["ks"])]
    if not isinstance(analysis["name"], str) or not analysis["layers"]:
        raise ValueError("name must be a text and layers must not be empty")
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("exploration_rate, positions, temperature, layer, entropy and coverage must be numbers")


def analysis_lines(analyses: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name}: expected exploration rate E[1 - max p] = {analysis['exploration_rate']:.4f} over "
        f"{analysis['positions']} positions at temperature {analysis['temperature']:g}."
        for name, analysis in analyses.items()
    ]


def command_line(args: argparse.Namespace) -> str:
    """That makes the same report again."""
    words = ["python", "-m", "led_sglang.evals", "report", *map(str, args.runs), "--out", str(args.out)]
    for name in ("title", "baseline", "reference", "seed", "resamples"):
        words += [] if getattr(args, name) is None else [f"--{name}", str(getattr(args, name))]
    return shlex.join([*words, *(word for path in args.analysis for word in ("--analysis", str(path)))])


def check_method(methods: list[str], option: str, given: str | None) -> None:
    """Raises EvalError for a method that none of the runs has."""
    if given is not None and given not in methods:
        raise EvalError(f"{option}: the runs have no method {given!r}; they have {', '.join(methods)}")


def write_report(args: argparse.Namespace) -> list[Path]:
    """Returns the files written. Raises CommandError."""
    files.check_folder(args.out / "figures")
    cells = results.read_cells(args.runs)
    methods = sorted({key.method for key in cells}, key=method_order)
    check_method(methods, "--baseline", args.baseline)
    check_method(methods, "--reference", args.reference)
    baseline, reference = args.baseline or BASELINE, args.reference or REFERENCE
    named = {"baseline": baseline, "reference": reference}
    given = argparse.Namespace(**vars(args) | {k: name if name in methods else None for k, name in named.items()})
    experiment = Experiment(cells, baseline, reference, args.seed, args.resamples)
    analyses = read_analyses(args.analysis)
    runs = [read_settings(folder) for folder in args.runs]
    notes = [f"Note: {line}" for line in warnings(experiment)]
    report = Report(
        title=args.title,
        overview=[*provenance.overview(runs), *analysis_lines(analyses), *notes],
        tables=all_tables(experiment),
        figures=all_figures(experiment, analyses),
        runs=provenance.runs_table(args.runs, runs),
        applied=provenance.applied_lines(runs),
        command=command_line(given),
    )
    written = {
        args.out / "report.md": markdown(report),
        args.out / "report.html": page(report),
        args.out / "summary.json": json.dumps(summary(experiment), indent=1) + "\n",
        **{args.out / "figures" / f"{name}.svg": svg for name, svg in report.figures.items()},
    }
    for path, text in written.items():
        files.write_text(path, text)
    return list(written)
