"""Minutes of the soak (an hour: `make soak MINUTES=60`), one token a step and speculating; see docs/reliability.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1200)]


SERVERS = {
    "one token a step": (10, ()),
    "NGRAM": (2, ("--led-alone", "--server-args", "--speculative-algorithm NGRAM --speculative-num-draft-tokens 6")),
}


@pytest.mark.parametrize("name", SERVERS)
def test_soak(name: str, tmp_path: Path) -> None:
    minutes, arguments = SERVERS[name]
    # Niced: it takes what the other tests leave of the machine, and they do not wait for it.
    limits = ("--minutes", str(minutes), "--seed", "11", "--log", str(tmp_path / "server.log"))
    soak = ("-m", "benchmarks.soak", *limits, *arguments)
    process = subprocess.Popen(("nice", "-n", "5", sys.executable, *soak), stdout=subprocess.PIPE, text=True)
    try:
        last_line = process.communicate()[0].splitlines()[-1]
    finally:
        process.terminate()  # an interrupt: its server goes with it
        process.wait()
    found = json.loads(last_line)
    assert found["num_faults"] == 0, found["faults"]
    assert process.returncode == 0
    assert found["seconds"] >= 60 * minutes
    assert found["requests"] >= 60 * minutes
    for kind in ("retractions", "traces_checked", "left_in_stream", "aborted", "refused"):
        assert found[kind] > 0, f"no {kind}: the soak did not try them"
