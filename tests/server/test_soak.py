"""Ten minutes of the soak (an hour: `make soak MINUTES=60`); see docs/reliability.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_ten_minutes_of_soak(tmp_path: Path) -> None:
    # Niced: it takes what the other tests leave of the machine, and they do not wait for it.
    soak = ("-m", "benchmarks.soak", "--minutes", "10", "--seed", "11", "--log", str(tmp_path / "server.log"))
    process = subprocess.Popen(("nice", "-n", "5", sys.executable, *soak), stdout=subprocess.PIPE, text=True)
    try:
        last_line = process.communicate()[0].splitlines()[-1]
    finally:
        process.terminate()  # an interrupt: its server goes with it
        process.wait()
    found = json.loads(last_line)
    assert found["num_faults"] == 0, found["faults"]
    assert process.returncode == 0
    assert found["seconds"] >= 600
    assert found["requests"] >= 600
    for kind in ("retractions", "traces_checked", "left_in_stream", "aborted", "refused"):
        assert found[kind] > 0, f"no {kind}: the soak did not try them"
