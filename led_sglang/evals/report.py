"""Writes the report of one or several runs: report.md, figures/*.svg, summary.json and one self-contained page."""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from led_sglang.evals import results, statistics
from led_sglang.evals.errors import EvalError
from led_sglang.evals.figures import all_figures
from led_sglang.evals.store import read_settings
from led_sglang.evals.tables import Experiment, Table, all_tables

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


def describe(runs: list[dict[str, Any]]) -> list[str]:
    """What was run, in lines for the top of the report."""
    lines: list[str] = []
    told: dict[str, tuple[str, dict[str, Any]]] = {}
    for run in runs:
        fixed = run.get("fixed", {})
        asked = ", ".join(f"{count} of {task}" for task, count in sorted(run.get("num_questions", {}).items()))
        temperatures = ", ".join(f"{t:g}" for t in run.get("temperatures", []))
        lines.append(
            f"Model {fixed.get('model')}; {asked}; {run.get('samples')} samples a question; "
            f"temperature {temperatures}; seed {fixed.get('seed')}."
        )
        wall_s = sum(session.get("wall_s", 0.0) for session in run.get("sessions", []))
        versions = ", ".join(f"{name} {value}" for name, value in sorted(run.get("server", {}).items()))
        lines.append(f"Wall time {wall_s:.0f} s" + (f"; server: {versions}." if versions else "."))
        lines += applied_lines(run.get("applied", {}), told)
        if sandbox := run.get("sandbox"):
            held = "; ".join(f"{what}: {how}" for what, how in sorted(sandbox.items()))
            lines.append(f"Programs were held by: {held}.")
    return lines


def applied_lines(applied: dict[str, dict[str, Any]], told: dict[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """What the server applied: in full for the first setting of a decoding method, as differences for its others.

    told: those first settings by decoding method, over all runs of a report; what is new is added.
    """
    lines = []
    for name, settings in applied.items():
        first, base = told.setdefault(str(settings.get("method")), (name, settings))
        own = {key: value for key, value in settings.items() if base is settings or base.get(key) != value}
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in own.items())
        if base is settings:
            lines.append(f"Applied for `{name}`: {shown}.")
        elif name != first or own:
            lines.append(f"Applied for `{name}`: as for `{first}`" + (f", but {shown}." if own else "."))
    return lines


def warnings(experiment: Experiment) -> list[str]:
    """What a reader has to know before believing a number."""
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


def markdown(title: str, lines: list[str], tables: list[Table], figures: dict[str, str], command: str) -> str:
    parts = [f"# {title}\n", "\n".join(f"- {line}" for line in lines) + "\n"]
    parts += [table.markdown() for table in tables]
    if figures:
        parts.append("## Figures\n\n" + "\n".join(f"![{name}](figures/{name}.svg)" for name in figures) + "\n")
    return "\n".join([*parts, f"Made by\n\n    {command}\n"])


def _inline(text: str) -> str:
    """The little Markdown that cells and lines hold."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


def page(title: str, lines: list[str], tables: list[Table], figures: dict[str, str], command: str) -> str:
    parts = [f"<h1>{html.escape(title)}</h1><ul>", *(f"<li>{_inline(line)}</li>" for line in lines), "</ul>"]
    for table in tables:
        head = "".join(f"<th>{_inline(cell)}</th>" for cell in table.header)
        rows = "\n".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in table.rows)
        parts.append(f"<h2>{html.escape(table.title)}</h2><p>{_inline(table.note)}</p>")
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>')
    if figures:
        parts.append('<h2>Figures</h2><div class="figures">')
        for name, svg in figures.items():
            data = base64.b64encode(svg.encode()).decode()
            parts.append(f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">')
        parts.append("</div>")
    parts.append(f"<p>Made by</p><pre>{html.escape(command)}</pre>")
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


def read_analyses(paths: list[Path]) -> dict[str, dict[str, Any]]:
    analyses: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            analysis = json.loads(path.read_text())
            analyses[str(analysis["name"])] = analysis
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvalError(f"--analysis {path}: not a file of led_sglang.analysis: {error}") from error
    return analyses


def analysis_lines(analyses: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name}: expected exploration rate E[1 - max p] = {analysis['exploration_rate']:.4f} over "
        f"{analysis['positions']} positions at temperature {analysis['temperature']:g}."
        for name, analysis in analyses.items()
    ]


def write_report(args: argparse.Namespace) -> list[Path]:
    """Returns the files written. Raises EvalError."""
    cells = results.read_cells(args.runs)
    experiment = Experiment(cells, args.baseline, args.reference, args.seed, args.resamples)
    analyses = read_analyses(args.analysis)
    runs = [read_settings(folder) for folder in args.runs]
    lines = [*describe(runs), *analysis_lines(analyses), *(f"Note: {line}" for line in warnings(experiment))]
    tables, figures = all_tables(experiment), all_figures(experiment, analyses)
    command = " ".join(
        ["python -m led_sglang.evals report", *map(str, args.runs), f"--out {args.out}", f"--seed {args.seed}"]
        + [f"--analysis {path}" for path in args.analysis]
    )
    written = {
        args.out / "report.md": markdown(args.title, lines, tables, figures, command),
        args.out / "report.html": page(args.title, lines, tables, figures, command),
        args.out / "summary.json": json.dumps(summary(experiment), indent=1) + "\n",
        **{args.out / "figures" / f"{name}.svg": svg for name, svg in figures.items()},
    }
    (args.out / "figures").mkdir(parents=True, exist_ok=True)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return list(written)
