"""A tiny run of the evaluation on the embedded model: what was asked is applied, and a report comes out."""

import json
from pathlib import Path

import pytest

from led_sglang.evals.__main__ import main
from led_sglang.evals.records.store import read_lines
from tests.server.servers import Server

pytestmark = pytest.mark.server
METHODS = "cot,led,led:depth=4,led:latent_norm=true"


def test_run_and_report(embedded_server: Server, tmp_path: Path) -> None:
    out, docs = tmp_path / "run", tmp_path / "docs"
    requested = ["--task", "embedded", "--methods", METHODS, "--samples", "2", "--limit", "4"]
    assert main(["run", *requested, "--base-url", f"{embedded_server.url}/v1", "--out", str(out), "--quiet"]) == 0
    samples = list(read_lines(out / "samples.jsonl"))
    assert len(samples) == 4 * 4 * 2
    applied = {sample.method: sample.led for sample in samples}
    assert applied["cot"] == {"method": "none"}
    assert applied["led:depth=4"]["depth"] == 4 and applied["led:latent_norm=true"]["latent_norm"] is True
    assert all(sample.tokens > 10 for sample in samples)
    assert any(sample.outcome == "right" for sample in samples), [sample.text for sample in samples[:4]]
    assert main(["report", str(out), "--out", str(docs), "--resamples", "200"]) == 0
    assert "Table 5: ablations" in (docs / "report.md").read_text()
    assert len(json.loads((docs / "summary.json").read_text())) == 4


def test_a_depth_the_server_does_not_offer(
    embedded_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requested = ["--task", "embedded", "--methods", "led:depth=4000", "--samples", "1", "--limit", "1"]
    assert main(["run", *requested, "--base-url", f"{embedded_server.url}/v1", "--out", str(tmp_path / "run")]) == 1
    assert "custom_params.led.depth" in capsys.readouterr().err
