"""Ten minutes of the soak (an hour: `make soak MINUTES=60`); see docs/reliability.md."""

from pathlib import Path

import pytest

from benchmarks.soak.run import ARGUMENTS, ENVIRONMENT, Bounds, soak
from tests.server.launching import Server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_ten_minutes_of_soak(logs: Path) -> None:
    with Server(*ARGUMENTS, log=logs / "soak.log", environment=ENVIRONMENT) as server:
        found = soak(server, Bounds(minutes=10, seed=11))
    assert found["num_faults"] == 0, found["faults"]
    assert found["seconds"] >= 600
    assert found["requests"] >= 600
    for kind in ("retractions", "traces_checked", "left_in_stream", "aborted", "refused"):
        assert found[kind] > 0, f"no {kind}: the soak did not try them"
