"""Where a report's numbers come from: the model, the runs, and what the server applied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from led_sglang.evals.report.tables import Table, method_order

__all__ = ["applied_lines", "overview", "runs_table"]

Run = dict[str, Any]  # of run.json


def overview(runs: Sequence[Run]) -> list[str]:
    """Model, questions and server, in lines for the top of a report; what several runs share is written once."""
    return list(dict.fromkeys(line for run in runs for line in _overview_lines(run)))


def _overview_lines(run: Run) -> list[str]:
    fixed = run.get("fixed", {})
    requested = ", ".join(f"{count} of {task}" for task, count in sorted(run.get("num_questions", {}).items()))
    samples = f"{run.get('samples')} samples a question"
    prompts = f"; prompts {run['prompts']}" if "prompts" in run else ""  # of a run before 2027: ours
    lines = [f"Model {fixed.get('model')}; {requested}; {samples}; seed {fixed.get('seed')}{prompts}."]
    if versions := ", ".join(f"{name} {value}" for name, value in sorted(run.get("server", {}).items())):
        lines.append(f"Server: {versions}.")
    if held := "; ".join(f"{what}: {how}" for what, how in sorted(run.get("sandbox", {}).items())):
        lines.append(f"Programs were held by: {held}.")
    return lines


def runs_table(folders: Sequence[Path], runs: Sequence[Run]) -> Table:
    """A row for every run that was put together."""
    rows = [_run_row(folder.name, run) for folder, run in zip(folders, runs, strict=True)]
    note = "The time is that of the client, over all sittings."
    return Table("Runs", note, ["run", "methods", "temperatures", "samples a question", "time in s"], rows)


def _run_row(name: str, run: Run) -> list[str]:
    wall_s = sum(session.get("wall_s", 0.0) for session in run.get("sessions", []))
    methods = ", ".join(sorted(run.get("applied", {}), key=method_order))
    temperatures = ", ".join(f"{t:g}" for t in run.get("temperatures", []))
    return [name, methods, temperatures, str(run.get("samples")), f"{wall_s:,.0f}"]


def applied_lines(runs: Sequence[Run]) -> list[str]:
    """What the server applied: in full for the first setting of a decoding method, as differences for its others."""
    reported: dict[str, tuple[str, Run]] = {}
    lines = []
    for run in runs:
        for name, settings in sorted(run.get("applied", {}).items(), key=lambda item: method_order(item[0])):
            first, base = reported.setdefault(str(settings.get("method")), (name, settings))
            own = {key: value for key, value in settings.items() if base is settings or base.get(key) != value}
            shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in own.items())
            if base is settings:
                lines.append(f"`{name}`: {shown}.")
            elif name != first or own:
                lines.append(f"`{name}`: as for `{first}`" + (f", but {shown}." if own else "."))
    return list(dict.fromkeys(lines))
