"""The counters say what requests were told: no more, no less, at any moment."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.config.methods import METHODS
from led_sglang.integration.hooks.register import HANDLERS
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.ops.rows import stats
from led_sglang.wire import ACTIVE, EXPLORED, FALLBACK, RECORD_KEY, THINKING, VALUE_COLUMNS, WIRE_KEY
from tests.unit.integration.fakes import batch_of, request_row

PROCESSOR = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor."
ROWS = ["led", "none", None, "led", "dola"]
REPORTED = 99  # of the token before
OURS = ["led", "led", "dola"]
FLAGS = [THINKING | ACTIVE, THINKING | ACTIVE | EXPLORED | 2 << 8, THINKING]


def counted(counts: Counts, flags: list[int] = FLAGS) -> StepRecord:
    """A step whose rows the device has counted."""
    values = counts.on_device.values.numpy()
    methods = [METHODS.index(method) for method in OURS]
    stats.count(flags, methods, 1, values, counts.on_device.method_offset)
    return StepRecord(batch_of(*map(request_row, ROWS)), counts, torch.tensor(flags)[:, None])


def collect(record: StepRecord, row: int, finished_len: int | None = None) -> list[Any]:
    """What SGLang's processor does with a row that it hands out: the second token of its request."""
    request = SimpleNamespace(customized_info={WIRE_KEY: [REPORTED]}, output_ids=[5, 6], finished_len=finished_len)
    output = SimpleNamespace(customized_info={RECORD_KEY: record})
    HANDLERS[PROCESSOR + "_maybe_collect_customized_info"](lambda *_: None, None, row, request, output)
    before, *reported = request.customized_info[WIRE_KEY]
    assert before == REPORTED
    return reported


def close(record: StepRecord) -> None:
    output = SimpleNamespace(customized_info={RECORD_KEY: record})
    records.close(None, None, None, SimpleNamespace(logits_output=output))


@pytest.fixture
def counts() -> Counts:
    return Counts(8, torch.device("cpu"))


def test_a_step_counts_once_its_rows_are_handed_out(counts: Counts) -> None:
    record = counted(counts)
    assert counts.status()["led_tokens"] == 0, "still on its way"
    assert [collect(record, row) for row in range(5)] == [[FLAGS[0]], [0], [], [FLAGS[1]], [FLAGS[2]]]
    close(record)
    status = counts.status()
    assert status["led_tokens"] == 2 and status["thinking_tokens"] == 3 and status["explored_tokens"] == 1
    assert status["tokens"] == {method: ["led", "led", "none", "dola"].count(method) for method in METHODS}


def test_what_the_overlap_scheduler_drops_does_not_count(counts: Counts) -> None:
    record = counted(counts)
    collect(record, 0)
    close(record)
    status = counts.status()
    assert status["led_tokens"] == status["thinking_tokens"] == status["tokens"]["led"] == 1
    assert status["explored_tokens"] == status["tokens"]["dola"] == status["tokens"]["none"] == 0
    assert not any(status["depth_histogram"].values())


def test_a_token_beyond_the_requests_end_does_not_count(counts: Counts) -> None:
    record = counted(counts)
    assert [collect(record, row, end) for row, end in ((0, 2), (3, 1), (4, 0), (1, 0))] == [[FLAGS[0]], [], [], []]
    close(record)
    assert counts.status()["led_tokens"] == sum(counts.status()["tokens"].values()) == 1


def test_half_of_a_step_is_handed_out_when_somebody_asks(counts: Counts) -> None:
    record = counted(counts)
    collect(record, 3)
    assert counts.status()["led_tokens"] == counts.status()["explored_tokens"] == 1
    collect(record, 0)
    assert counts.status()["led_tokens"] == 2


def test_a_step_that_failed_before_it_was_counted(counts: Counts) -> None:
    record = StepRecord(batch_of(*map(request_row, ROWS)), counts)
    assert [collect(record, row) for row in (0, 3)] == [[FALLBACK], [FALLBACK]]
    close(record)
    status = counts.status()
    assert status["fallback_reasons"] == {"step_failed": 2, "not_finite": 0}
    assert status["tokens"]["led"] == 2 and status["led_tokens"] == status["tokens"]["dola"] == 0


@pytest.mark.parametrize(("num_tokens", "end", "num_visible"), [(1, None, 1), (5, None, 5), (5, 3, 3), (5, 0, 0)])
def test_a_verification_that_failed_before_it_was_counted(
    counts: Counts, num_tokens: int, end: int | None, num_visible: int
) -> None:
    """How many tokens the engine accepted is on the host by the time they are given out, and not before."""
    record = StepRecord(batch_of(request_row("led"), request_row("led", trace=True), request_row("none")), counts)
    assert not counts.pending and counts.status()["fallbacks"] == 0
    for row, value in enumerate((FALLBACK, (FALLBACK, *[None] * len(VALUE_COLUMNS)), 0)):
        request = SimpleNamespace(customized_info=None, output_ids=list(range(num_tokens)), finished_len=end)
        records.collect(lambda *_: None, None, row, request, SimpleNamespace(customized_info={RECORD_KEY: record}))
        assert (request.customized_info or {}).get(WIRE_KEY, []) == [value] * num_visible
    close(record)
    assert counts.status()["fallbacks"] == counts.status()["tokens"]["led"] == 2 * num_visible
    assert counts.status()["tokens"]["none"] == num_visible and counts.status()["led_tokens"] == 0


def test_a_row_that_could_not_be_reported_counts_as_what_was_reported(
    counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, current = counted(counts), SimpleNamespace(num_step_failures=0)
    monkeypatch.setattr(runtime, "_runtime", current)
    with monkeypatch.context() as patch:
        patch.setattr(StepRecord, "entries", lambda *_: 1 / 0)
        assert collect(record, 3) == [FALLBACK]
    assert collect(record, 0) == [FLAGS[0]]
    close(record)
    status = counts.status()
    assert current.num_step_failures == 1 and status["fallbacks"] == 1
    assert status["led_tokens"] == 1 and status["explored_tokens"] == 0 and status["tokens"]["led"] == 2


def test_a_batch_without_our_rows_has_nothing_to_close(counts: Counts) -> None:
    record = StepRecord(batch_of(request_row("none"), request_row(None)), counts)
    assert collect(record, 0) == [0] and not counts.pending
    close(record)
    records.close(None, None, None, SimpleNamespace(logits_output=None))
    assert counts.status()["tokens"]["none"] == 1 and counts.status()["fallbacks"] == 0
