"""The soak's audit finds what it is there for: each fault is planted, and must be told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.soak import audit, watch
from benchmarks.soak.clients import Outcome, send
from benchmarks.soak.oracle import thinking_flags
from benchmarks.soak.plan import CHAT, CLOSE_ID, GENERATE, OPEN_ID, Plan, draw, led_of
from led_sglang.config.methods import METHODS

STATS = {"led_tokens": 3, "thinking_tokens": 2, "explored_tokens": 1, "fallbacks": 0}
GROWN = {**STATS, "requests": {"led": 1}, "step_failures": 0, "report_failures": 0}


def traced() -> Outcome:
    """A request that closes its thinking phase with the second token."""
    body = {"sampling_params": {"custom_params": {"led": {"trace": True}}}}
    plan = Plan(0, GENERATE, body, "led", 1, 3, False, "read", (5, OPEN_ID))
    meta = {"led_think": [True, True, False], "led_stats": dict(STATS)}
    return Outcome(plan, 200, "", 3, [meta], [[7, CLOSE_ID, 8]])


def test_a_good_request_has_no_fault() -> None:
    assert audit.audit_endings([traced()]) == []
    assert audit.audit_counters([traced()], GROWN, {"led": 3}, {"led": 1}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"status": 500},
        {"status": 400},
        {"lost": "ReadTimeout"},
        {"output_ids": [[7, 8, CLOSE_ID]]},  # the flags belong to other tokens: a slot's old state
        {"metas": [{"led_think": [True, True, True], "led_stats": {**STATS, "thinking_tokens": 3}}]},
        {"metas": [{"led_think": [True, True, False], "led_stats": {**STATS, "thinking_tokens": 3}}]},
        {"metas": [{"led_think": [True, True], "led_stats": STATS}]},  # an entry was lost
    ],
)
def test_a_faulty_request_is_reported(change: dict[str, Any]) -> None:
    assert len(audit.audit_endings([replace(traced(), **change)])) == 1


@pytest.mark.parametrize("is_incremental", [False, True])
async def test_a_stream_is_judged_by_the_traces_of_all_its_chunks(is_incremental: bool) -> None:
    """Two samples whose chunks alternate."""
    ids, flags = traced().output_ids[0], traced().metas[0]["led_think"]
    lines = []
    for start, end in ((0, 2), (2, 3), (3, 3)):
        finish = {"type": "stop"} if start == 3 else None
        meta = {"led_think": flags[start:end], "led_stats": STATS, "completion_tokens": end, "finish_reason": finish}
        chunk = {"output_ids": ids[start if is_incremental else 0 : end], "meta_info": meta}
        lines += [json.dumps({**chunk, "index": index}) for index in (1, 0)]
    stream = "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]"))
    plan = replace(traced().plan, body={**traced().plan.body, "stream": True}, num_samples=2)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=stream))
    async with httpx.AsyncClient(transport=transport, base_url="http://soak") as client:
        outcome = await send(client, plan)
    assert audit.audit_endings([outcome]) == []
    assert [meta["led_think"] for meta in outcome.metas] == [flags, flags]
    assert (outcome.output_ids, outcome.num_tokens) == ([ids, ids], 6)


@pytest.mark.parametrize(
    ("grown", "rows", "requests"),
    [
        ({"led_tokens": 4}, 3, 1),
        ({"explored_tokens": 0}, 3, 1),
        ({"fallbacks": 1}, 3, 1),
        ({"step_failures": 1}, 3, 1),
        ({"report_failures": 1}, 3, 1),
        ({"requests": {"led": 2}}, 3, 1),
        ({}, 4, 1),
        ({}, 2, 1),
        ({}, 3, 2),
        ({}, 3, 0),
    ],
)
def test_a_counter_that_is_off_by_one_is_reported(grown: dict[str, Any], rows: float, requests: float) -> None:
    assert audit.audit_counters([traced()], {**GROWN, **grown}, {"led": rows}, {"led": requests})


def test_a_request_that_should_have_been_refused_is_reported() -> None:
    outcome = Outcome(Plan(0, CHAT, {}, "none", 0, 0, False, "refused", None), 200)
    assert audit.audit_endings([outcome])
    assert not audit.audit_endings([replace(outcome, status=400)])


def test_flags_follow_the_marker_that_ended_last() -> None:
    assert thinking_flags([1], [9, 2, 9, 1], [1], [2]) == [True, True, False, False]
    assert thinking_flags([], [1, 2, 3, 3, 0], [1, 2], [3, 3]) == [False, False, True, True, False]


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "[2026] ERROR: something",
        "ValueError: token_to_kv_pool_allocator memory leak detected!",
        "LED step failed; the engine's own tokens are used for this step",
    ],
)
def test_the_log_scanner_sees_trouble_behind_the_start_only(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"{line}\nINFO: 127.0.0.1 - 'POST /generate HTTP/1.1' 400 Bad Request\n")
    assert watch.troubles(log, 0) == [line]
    assert watch.troubles(log, len(line)) == []


def test_a_client_that_leaves_is_no_trouble(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[http_server] Error: Request is disconnected from the client side (type 1). Abort request obj.rid='a'\n"
    )
    assert watch.troubles(log, 0) == []


def test_the_plan_repeats_and_mixes() -> None:
    plans = [draw(number, 3) for number in range(2000)]
    assert plans == [draw(number, 3) for number in range(2000)]
    assert plans != [draw(number, 4) for number in range(2000)]
    assert {plan.ending for plan in plans} == {"read", "leave", "abort", "refused"}
    assert {p.method for p in plans} == set(METHODS)
    legal = [plan for plan in plans if plan.ending != "refused"]
    for path in {plan.path for plan in legal}:
        kinds = {str(led_of(plan.body))[:12] for plan in legal if plan.path == path}
        assert len(kinds) > 5, path
