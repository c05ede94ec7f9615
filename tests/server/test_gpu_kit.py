"""The GPU kit's server part without a GPU: the same requests and readings, on the embedded model."""

from pathlib import Path

import pytest

from benchmarks.gpu import kit, summary
from benchmarks.gpu.server_modes import MODES

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def test_dry_run_of_the_server_part(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--dry-run", "--parts", "server", "--explore-rate", "0.5"]
    status = kit.main(arguments)
    lines = [line for line in summary.read(tmp_path / "lines.jsonl") if line["kind"] != "part"]
    assert status == 0, lines
    started, *timed = lines
    assert started["kind"] == "start" and started["mode"] == "auto"
    assert [(line["mode"], line["rows"]) for line in timed] == [("auto", 1), ("auto", 3)]
    for line in timed:
        assert 0 < line["step_ms_min"] <= line["step_ms"] <= line["step_ms_max"] and line["timed_by"]
        assert sum(line["form_steps"].values()) > 0 and line["form_fault"] is None
    assert 0 < timed[-1]["explored_share"] < 1
    assert f"Server, auto, 3 rows: {timed[-1]['step_ms']:.3f} ms a step" in (tmp_path / "summary.md").read_text()


def test_no_two_modes_are_the_same_start() -> None:
    """On a GPU "auto" is the triton backend: a mode that asks for it again would cost a lease a second start."""
    starts = [tuple(arguments) for arguments in MODES.values()]
    assert len(set(starts)) == len(starts) == 4 and not any("--led-backend" in start for start in starts)
