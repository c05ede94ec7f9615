"""Rows of different methods in one batch: who sits where, through filtering and merging."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.scheduler.batch import LedBatch, request_row_of
from led_sglang.ops.rows.automaton import ThinkingAutomaton
from led_sglang.wire import RESOLVED_KEY
from tests.unit.integration.fakes import CLOSE_ID, batch_of, request_row, sampling_info, sampling_params

MIXED = ("led", None, "dola", "none", "soft_thinking", "dola", "led", "confident")


def methods_of(led: LedBatch) -> list[str | None]:
    return [None if s.request is None else s.request.params.method for s in led.request_rows]


def test_groups_know_their_rows_of_the_batch_and_among_ours() -> None:
    led = batch_of(*(request_row(method, seed=i) for i, method in enumerate(MIXED)))
    rows = led.device_rows(sampling_info(led))
    assert led.our_rows == (0, 2, 4, 5, 6, 7)  # neither strangers nor plain sampling
    assert rows.index is not None and rows.index.tolist() == [0, 2, 4, 5, 6, 7]
    assert {name: group.batch_rows.tolist() for name, group in rows.groups.items()} == {
        "dola": [2, 5],
        "soft_thinking": [4],
        "confident": [7],
    }
    assert {name: group.rows.tolist() for name, group in rows.groups.items()} == {
        "dola": [1, 3],
        "soft_thinking": [2],
        "confident": [5],
    }
    assert rows.is_led is not None and rows.is_led.tolist() == [True, False, False, False, True, False]
    assert rows.seed.tolist() == [0, 2, 4, 5, 6, 7]


def test_led_alone_costs_no_groups() -> None:
    led = batch_of(request_row("led"), request_row("led", depth=3))
    rows = led.device_rows(sampling_info(led))
    assert rows.index is None and rows.is_led is None and rows.groups == {}
    assert rows.params.depth.tolist() == [8, 3]
    assert led.device_rows(sampling_info(led)) is rows, "made once for one composition"


@pytest.mark.parametrize("num_rows", [1, 3, 16, 17])
def test_every_column_is_aligned(num_rows: int) -> None:
    """Or Triton would compile its kernels anew for batches of other sizes."""
    led = batch_of(*(request_row("led", depth=3 + i % 2, seed=i) for i in range(num_rows)))
    rows = led.device_rows(sampling_info(led))
    columns = [rows.seed, rows.phase_all, rows.start_length, rows.params.depth, rows.params.trace, rows.params.exploit]
    assert all(column.is_contiguous() and column.data_ptr() % 16 == 0 for column in columns)
    assert rows.seed.tolist() == list(range(num_rows))
    assert rows.params.depth.tolist() == [3 + i % 2 for i in range(num_rows)]
    assert rows.params.exploit.all() and not rows.params.trace.any()


def test_other_methods_do_not_widen_leds_work() -> None:
    led = batch_of(request_row("led", depth=2, top_k=3), request_row("dola"), request_row("soft_thinking"))
    params = led.device_rows(sampling_info(led)).params
    assert (params.max_depth, params.max_top_k) == (2, 3)
    assert not params.any_trace and not params.any_norm


def test_temperatures_and_greed_follow_their_rows() -> None:
    led = batch_of(request_row(None), request_row("dola"), request_row("none"), request_row("led"))
    rows = led.device_rows(sampling_info(led, [0.1, 0.2, 0.3, 0.4], [True, False, False, True]))
    assert rows.params.temperature.tolist() == pytest.approx([0.2, 0.4])
    assert rows.params.greedy.tolist() == [False, True]


def test_group_parameters_are_columns() -> None:
    led = batch_of(request_row("dola", relative_top=0.5), request_row("led"), request_row("dola", layers="high"))
    group = led.device_rows(sampling_info(led)).groups["dola"]
    column = group.column("relative_top", torch.float32)
    assert column.tolist() == pytest.approx([0.5, 0.1])
    assert group.column("relative_top", torch.float32) is column


def test_filter_and_merge_keep_every_row_with_its_request() -> None:
    led = batch_of(*(request_row(method, seed=i) for i, method in enumerate(MIXED)))
    kept = led.filter([7, 1, 4])
    assert kept is not None and methods_of(kept) == ["confident", None, "soft_thinking"]
    assert kept.device_rows(sampling_info(kept)).groups["confident"].batch_rows.tolist() == [0]
    merged = LedBatch.merge(None, 2, kept, 3)
    assert merged is not None and methods_of(merged) == [None, None, "confident", None, "soft_thinking"]
    assert merged.device_rows(sampling_info(merged)).groups["soft_thinking"].batch_rows.tolist() == [4]
    back = LedBatch.merge(kept, 3, None, 1)
    assert back is not None and methods_of(back) == ["confident", None, "soft_thinking", None]
    assert LedBatch.merge(None, 2, None, 3) is None
    assert led.filter([1]) is None, "nobody of ours is left"


def request(method: str | None, prompt: list[int], output: list[int]) -> Any:
    stamp = None if method is None else {RESOLVED_KEY: ResolvedRequest(LedParams(method), 3, True, 0).to_wire()}
    return SimpleNamespace(
        sampling_params=sampling_params(custom_params=stamp),
        origin_input_ids=prompt,
        output_ids=output,
        skip_radix_cache_insert=False,
    )


@pytest.mark.parametrize("method", ["led", "none", "dola", "confident", "soft_thinking", "soft_thinking_gumbel", None])
def test_soft_requests_alone_stay_out_of_the_prefix_cache(method: str | None) -> None:
    req = request(method, [1, 6, 2], [])
    seated = request_row_of(req, None)
    assert req.skip_radix_cache_insert == (method in ("soft_thinking", "soft_thinking_gumbel"))
    assert (seated.request is None) == (method is None)


def test_a_resumed_request_starts_from_its_whole_ids() -> None:
    """After a retraction the prompt and all output so far are extended again."""
    automaton = ThinkingAutomaton((6,), (CLOSE_ID,), 10)
    inside = request_row_of(request("soft_thinking", [1, 6, 2], [3, 4]), automaton)
    assert automaton.thinking(inside.start_state) and inside.start_length == 5
    outside = request_row_of(request("soft_thinking", [1, 6, 2], [3, CLOSE_ID]), automaton)
    assert not automaton.thinking(outside.start_state)
