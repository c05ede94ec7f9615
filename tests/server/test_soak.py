"""Half a minute of the soak (an hour: `make soak ARGS='--requests 20000 --minutes 60'`); see docs/reliability.md."""

from pathlib import Path

import pytest

from benchmarks.soak.run import ARGUMENTS, ENVIRONMENT, Bounds, soak
from tests.server.launching import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def test_a_short_soak(logs: Path) -> None:
    # Memory still settles in the first minute: the bound of 2 % is the long run's.
    bounds = Bounds(minutes=4, requests=600, num_phases=4, num_warm_phases=2, memory_growth=0.1, seed=11)
    with Server(*ARGUMENTS, log=logs / "soak.log", environment=ENVIRONMENT) as server:
        found = soak(server, bounds)
    assert found["num_faults"] == 0, found["faults"]
    assert found["requests"] == 600
    for kind in ("retractions", "traces_checked", "left_in_stream", "aborted", "refused"):
        assert found[kind] > 0, f"no {kind}: the soak did not try them"
