"""What is counted of a verification is what was given out of it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.ops.constants import NOT_COUNTED
from led_sglang.wire import RECORD_KEY
from tests.unit.integration.scheduler.speculation import world
from tests.unit.integration.scheduler.speculation.world import BACKENDS, Request, Server, Verified

Serve = Callable[..., Server]


def led_tokens(server: Server) -> dict[str, int]:
    tokens: dict[str, int] = server.runtime.counts.status()["tokens"]
    return tokens


def record_of(verified: Verified) -> StepRecord:
    record: StepRecord = verified.output.customized_info[RECORD_KEY]
    assert verified.output.customized_info["another"], "another plugin's stays"
    return record


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_counts_before_it_is_given_out(backend: str, serve: Serve) -> None:
    server = serve(world.requests(), BACKENDS[backend], world.right)
    verified = server.verify()
    assert sum(led_tokens(server).values()) == server.runtime.counts.status()["led_tokens"] == 0
    server.give_out(verified)
    server.check_reports()
    assert sum(led_tokens(server).values()) == sum(len(r.output_ids) for r in server.requests if r.method is not None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_inside_a_run_cuts_what_is_behind_it(backend: str, serve: Serve) -> None:
    server = serve(world.requests(), BACKENDS[backend], world.right, is_chain=True)
    server.give_out(server.verify())
    verified = server.verify()
    lengths = verified.found[1].tolist()
    ends = {b: len(r.output_ids) + min(b % 3, lengths[b]) for b, r in enumerate(server.requests)}
    assert any(ends[b] < len(r.output_ids) + lengths[b] for b, r in enumerate(server.requests) if r.is_ours)
    before = [len(request.entries) for request in server.requests]
    server.give_out(verified, ends)
    server.check_reports()
    for b, request in enumerate(server.requests):
        if request.method is not None:
            assert len(request.entries) == ends[b] and ends[b] - before[b] == min(b % 3, lengths[b])


def test_what_the_overlap_scheduler_drops_does_not_count(serve: Serve) -> None:
    """It has launched one more verification for a request that has just ended."""
    server = serve(world.requests(), BACKENDS["numba"], world.right)
    verified = server.verify()
    record = record_of(verified)
    assert record in server.runtime.counts.pending
    kept = [0, 3, 5, 7]
    num_kept = {b: int(verified.found[1][b]) for b in kept}
    flags = {b: record.entries(b, num_kept[b]) for b in kept}
    records.close(None, None, None, SimpleNamespace(logits_output=verified.output))  # type: ignore[arg-type]
    assert record not in server.runtime.counts.pending
    status = server.runtime.counts.status()
    assert status["tokens"]["led"] == sum(num_kept[b] for b in (0, 3, 7))
    assert status["tokens"]["none"] == num_kept[5]
    first = [entry if isinstance(entry, int) else entry[0] for b in (0, 3, 7) for entry in flags[b]]
    assert status["thinking_tokens"] == sum(flag & 1 for flag in first)


def test_a_row_asks_for_no_more_than_it_has(serve: Serve) -> None:
    server = serve([Request(seed=1), Request(method=None)], BACKENDS["numba"], world.right)
    verified = server.verify()
    record, length = record_of(verified), int(verified.found[1][0])
    assert record.entries(1, 5) == []
    assert len(record.entries(0, 100)) == length and len(record.entries(0, 1)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_behind_a_path_are_not_counted(backend: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device counts accepted nodes alone."""
    counted: list[Any] = []
    chosen = BACKENDS[backend]
    count = type(chosen).count
    monkeypatch.setattr(
        type(chosen), "count", lambda self, *args: (counted.append(args[3] != NOT_COUNTED), count(self, *args))[1]
    )
    server = serve(world.requests(), chosen, world.wrong)
    verified = server.verify()
    [is_counted] = counted
    expected = set()
    for b, request in enumerate(server.requests):
        if request.is_ours:
            expected |= set(verified.found[2][b].tolist()) - {-1}
    assert set(is_counted.nonzero().flatten().tolist()) == expected
    device = server.runtime.counts.on_device
    assert int(device.values[device.method_offset :].sum()) == len(expected)
