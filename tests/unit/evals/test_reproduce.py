"""`reproduce`: every stage is run once, goes on where it stopped, and ends in one report."""

import json
from pathlib import Path
from typing import Any

import pytest

from led_sglang.config.fields import ALL_METHODS
from led_sglang.evals import reproduce as reproduce_module
from led_sglang.evals.__main__ import main
from led_sglang.evals.reproduce import STAGES, evaluated_server
from tests.unit.evals.fake_server import DEFAULTS, FakeServer


def applied_to(led: Any) -> dict[str, Any]:
    if led is False:
        return {"method": "none"}
    return {"method": "led", **DEFAULTS, **led}


def reproduce(server: FakeServer, folder: Path, *more: str) -> int:
    where = ["--base-url", server.url, "--runs", str(folder / "runs"), "--out", str(folder / "report")]
    return main(["reproduce", "--limit", "2", "--samples", "4", "--few", "2", *where, *more])


def test_all_stages_make_one_report(tmp_path: Path) -> None:
    with FakeServer(apply=applied_to) as server:
        assert reproduce(server, tmp_path) == 0
        num_requests = len(server.bodies)
        assert reproduce(server, tmp_path) == 0
        checks = sum(len(stage.methods.split("led:")) for stage in STAGES.values())  # one short request a method
        assert len(server.bodies) - num_requests <= 2 * checks, "finished stages were run again"
    cells = json.loads((tmp_path / "report" / "summary.json").read_text())
    samples = {(cell["method"], cell["temperature"]): cell["samples"] for cell in cells}
    assert samples["cot", 0.6] == samples["led:min_p=0.05", 0.6] == 2 * 4
    assert samples["cot", 0.1] == samples["dola", 0.6] == samples["led:depth=11", 0.6] == 2 * 2
    assert len(samples) == 3 + 6 + 6 + 4 + 11
    report = (tmp_path / "report" / "report.md").read_text()
    for title in ("Table 1", "Table 2", "Table 3", "Table 5", "depth-countdown-t0.6.svg", "temperature-countdown.svg"):
        assert title in report


def test_some_stages(tmp_path: Path) -> None:
    with FakeServer(apply=applied_to) as server:
        assert reproduce(server, tmp_path, "--stages", "main") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["main"]


def test_its_own_server_can_do_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model: a method refused in the last stage would come after hours."""
    requested: list[str] = []

    class Started:
        url = "http://127.0.0.1:1"

        def __init__(self, *arguments: str, log: Path) -> None:
            requested.extend(arguments)

        def wait_ready(self) -> None: ...

        def stop(self) -> None: ...

    monkeypatch.setattr(reproduce_module, "Server", Started)
    with evaluated_server("--model-path x --led-max-depth 4", tmp_path, "") as url:
        assert url == "http://127.0.0.1:1/v1"
    last = {requested[i]: requested[i + 1] for i in range(0, len(requested), 2)}
    assert last == {"--led-methods": ALL_METHODS, "--led-max-depth": "4", "--model-path": "x"}
    assert requested[:4] == ["--led-methods", ALL_METHODS, "--led-max-depth", "12"]


def test_a_server_that_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    assert main(["reproduce", "--serve=--no-such-argument", *where]) == 1
    assert "the server of --serve '--no-such-argument' did not start" in capsys.readouterr().err
