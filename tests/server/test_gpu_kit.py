"""The GPU kit's server part without a GPU: the same requests and readings, on the embedded model."""

import json

import pytest

from benchmarks.gpu import kit

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def test_dry_run_of_the_server_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert kit.main(["--dry-run", "--parts", "server"]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["mode"], line["rows"]) for line in lines] == [("auto", 1), ("auto", 3)]
    for line in lines:
        assert 0 < line["mean_ms"] <= line["p99_ms"]
        assert line["counters"]["led_tokens"] >= 8 * line["rows"], "eight tokens a row, in all phases"
        assert line["form"]["fault"] is None
