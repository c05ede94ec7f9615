"""A fault of ours in a function that serves everybody is counted and logged, never raised."""

import ast
import asyncio
import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import unwrap_from_pickle, wrap_as_pickle
from starlette.exceptions import HTTPException

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.config.server import ServerConfig, export_config
from led_sglang.integration.faults import CaptureError, RankDivergence
from led_sglang.integration.hooks.guard import Guarded, Handler
from led_sglang.integration.hooks.register import HANDLERS
from led_sglang.integration.hooks.table import BATCH_INFO, HOOK_TARGETS, TOKENIZER
from led_sglang.integration.http import info, responses
from led_sglang.integration.http.request_view import RequestView
from led_sglang.integration.scheduler import ranks, runtime, startup
from led_sglang.integration.scheduler.batch import LedBatch, RequestRow
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.integration.scheduler.step import sampler
from led_sglang.wire import FALLBACK, RECORD_KEY, RESOLVED_KEY, THINKING, WIRE_KEY
from tests.server import fault_plugin
from tests.unit.integration.fakes import batch_of, break_handler, request_row

PROCESSOR = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor."
FILTER = BATCH_INFO + "adjusted_filter_batch"


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LED_SGLANG_CONFIG", "")
    export_config(ServerConfig())


def test_a_malformed_answer_does_not_stop_the_tokenizer_manager(caplog: pytest.LogCaptureFixture) -> None:
    before = responses.ANSWERS.to_dict()["report_failures"]
    custom = {WIRE_KEY: [[1]], "another": [[2], [3]]}  # one entry for two requests
    answer = SimpleNamespace(rids=["a", "b"], completion_tokens=[1, 1], customized_info=wrap_as_pickle(custom))
    HANDLERS[TOKENIZER + "_handle_batch_output"](SimpleNamespace(rid_to_state={}), answer)
    assert responses.ANSWERS.to_dict()["report_failures"] == before + 1
    assert "could not report" in caplog.text
    assert unwrap_from_pickle(answer.customized_info) == {"another": [[2], [3]]}, "ours reaches nobody"


def test_entries_that_nobody_took_reach_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = HANDLERS[TOKENIZER + "_handle_batch_output"]
    break_handler(monkeypatch, hook, Raising(ArithmeticError))
    for custom, left in (({WIRE_KEY: [[1]], "another": [[2]]}, {"another": [[2]]}), ({WIRE_KEY: [[1]]}, None)):
        answer = SimpleNamespace(rids=["a"], completion_tokens=[1], customized_info=wrap_as_pickle(custom))
        hook(SimpleNamespace(rid_to_state={}), answer)
        assert (answer.customized_info and unwrap_from_pickle(answer.customized_info)) == left


def test_every_hook_of_the_table_is_broken_by_the_test_of_faults() -> None:
    """A new one is too: each that is called while serving is broken by a `test_faults.py` of tests/server.

    Those between pipeline stages by pipeline/test_outputs.py in tests/unit/integration/scheduler, and those between two
    servers by disaggregation/test_handoff.py beside it; that of an update of the weights by latents/test_head_copy.py.
    """
    at_start = {target for target, guarded in HANDLERS.items() if guarded.is_start_only}
    assert at_start == set(fault_plugin.AT_START)
    assert {*fault_plugin.HOOKS, *fault_plugin.ELSEWHERE} == set(HOOK_TARGETS)
    for target, guarded in HANDLERS.items():
        assert isinstance(guarded, Guarded) and guarded.target == target
        assert guarded.spec is HOOK_TARGETS[target] and isinstance(guarded.handler, Handler)


@pytest.mark.parametrize("target", fault_plugin.AT_START)
def test_a_fault_at_the_start_ends_it(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded, spec = HANDLERS[target], HOOK_TARGETS[target]
    break_handler(monkeypatch, guarded, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guarded(*([None] * (len(spec.parameters) + (spec.kind == "around"))))


class Serving:
    """As much of a Runtime as the recoveries touch."""

    def __init__(self) -> None:
        self.failed: list[Any] = []
        self.num_step_failures = 0
        self.failed_ranks = None
        self.has_started = True

    def fail_forward(self, batch: Any) -> None:
        self.failed.append(batch)


FORWARDS = {
    "sglang.srt.model_executor.model_runner.ModelRunner._forward_raw": lambda batch: (None, batch, None),
    "sglang.srt.layers.logits_processor.LogitsProcessor.forward": lambda batch: (original, None, 1, 2, 3, batch, "aux"),
    "sglang.srt.model_executor.model_runner.ModelRunner.sample": lambda batch: (original, None, 1, batch),
}


def original(*args: Any) -> Any:
    return args


@pytest.mark.parametrize("error", [CaptureError, torch.OutOfMemoryError, ValueError])
@pytest.mark.parametrize("target", FORWARDS)
def test_a_fault_in_a_forward_ends_a_start_and_fails_a_served_step(
    target: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm-up or a capture is nobody's batch: its fault is raised as it is, and so ends the start with its words."""
    serving = Serving()
    monkeypatch.setattr(runtime, "_runtime", serving)

    def fail(*args: Any) -> None:
        raise error("the sizes 1 and 2")

    break_handler(monkeypatch, HANDLERS[target], fail)
    warm_up, served = SimpleNamespace(sampling_info=None), SimpleNamespace(sampling_info=SimpleNamespace())
    with pytest.raises(error, match="the sizes 1 and 2"):
        HANDLERS[target](*FORWARDS[target](warm_up))
    assert not serving.failed and not serving.num_step_failures
    result = HANDLERS[target](*FORWARDS[target](served))
    assert serving.failed == [served] and serving.num_step_failures == 1
    if "LogitsProcessor" in target:
        assert "aux" in result, "layer outputs that the engine keeps are the engine's"
    serving.has_started = False  # without graphs a request's forward is the first
    with pytest.raises(error, match="the sizes 1 and 2"):
        HANDLERS[target](*FORWARDS[target](served))
    serving.has_started = True
    monkeypatch.setattr(runtime, "is_capturing", lambda: True)
    with pytest.raises(error, match="the sizes 1 and 2"):
        HANDLERS[target](*FORWARDS[target](served))


def test_what_the_engine_raises_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the original, through our handler: not ours to swallow or to count."""
    serving = Serving()
    monkeypatch.setattr(runtime, "_runtime", serving)
    target = "sglang.srt.model_executor.model_runner.ModelRunner.sample"
    break_handler(monkeypatch, HANDLERS[target], lambda original, *args: original(*args))

    def fail(*args: Any) -> None:
        raise KeyError("the engine's")

    with pytest.raises(KeyError, match="the engine's"):
        HANDLERS[target](fail, None, None, SimpleNamespace(sampling_info=SimpleNamespace()))
    assert not serving.num_step_failures


def test_a_divergence_of_ranks_and_a_refusal_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, error in ((TOKENIZER + "_send_one_request", LedParamError), (FILTER, RankDivergence)):
        with monkeypatch.context() as patch:
            break_handler(patch, HANDLERS[target], Raising(error))
            with pytest.raises(error):
                HANDLERS[target](None, None, None)


class Raising:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __call__(self, *args: Any) -> None:
        raise self.error


def test_rows_whose_request_rows_were_lost_stay_the_engines_and_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that was filtered wrongly nobody knows whose row is whose: what was asked is told of the request."""
    monkeypatch.setattr(runtime, "_runtime", Serving())
    info = SamplingInfo(3)
    info.led = batch_of(request_row("led"), request_row(None), request_row("none"), request_row("led"))
    with monkeypatch.context() as patch:
        patch.setattr(LedBatch, "filter", Raising(MemoryError))
        HANDLERS[FILTER](None, info, [0, 1, 2], None)
    assert info.led.lost_rows == (0, 1, 2) and not info.led.our_rows
    fresh = SamplingInfo(2)
    fresh.led = batch_of(request_row("led"), request_row(None))
    info.num_rows += 2
    HANDLERS[BATCH_INFO + "adjusted_merge_batch"](None, info, fresh)
    assert info.led.lost_rows == (0, 1, 2) and info.led.our_rows == (3,)
    counts = Counts(8, torch.device("cpu"))
    record = StepRecord(info.led, counts)
    reported = []
    for row, method in enumerate(("led", None, "none")):
        req = request_of(method)
        records.collect(original, None, row, req, SimpleNamespace(customized_info={RECORD_KEY: record}))
        reported.append(req.customized_info)
    assert reported == [{WIRE_KEY: [FALLBACK]}, None, {WIRE_KEY: [0]}]
    assert counts.status()["fallbacks"] == 1 and counts.status()["tokens"]["none"] == 1
    assert info.led.filter([0]) is not None, "and after the next filter"


@pytest.mark.parametrize("has_entry", [False, True])
def test_a_request_misses_no_entry_wherever_its_collection_failed(
    has_entry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving()
    monkeypatch.setattr(runtime, "_runtime", serving)
    collect = HANDLERS[PROCESSOR + "_maybe_collect_customized_info"]
    ours, others = collect.handler.function, []

    def fail(*args: Any) -> None:
        if has_entry:
            ours(*args)
        raise ArithmeticError

    break_handler(monkeypatch, collect, fail)
    record = StepRecord(batch_of(request_row("led")), Counts(8, torch.device("cpu")))
    output = SimpleNamespace(customized_info={RECORD_KEY: record, "another": [5]})
    req = request_of("led", num_tokens=2, entries=[7])
    collect(lambda self, i, req, output: others.append(dict(output.customized_info)), None, 0, req, output)
    assert req.customized_info == {WIRE_KEY: [7, FALLBACK]} and others == [{"another": [5]}]
    assert serving.num_step_failures == 1 and RECORD_KEY in output.customized_info


def request_of(method: str | None, num_tokens: int = 1, entries: list[int] | None = None) -> Any:
    stamp = ResolvedRequest(LedParams(method), 1, True, 0).to_wire() if method else None
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params={RESOLVED_KEY: stamp} if stamp else None),
        output_ids=[0] * num_tokens,
        finished_len=None,
        customized_info=None if entries is None else {WIRE_KEY: entries},
    )


class SamplingInfo:
    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.led: Any = None

    def __len__(self) -> int:
        return self.num_rows


def test_entries_that_were_lost_leave_the_later_ones_to_their_own_tokens() -> None:
    view = RequestView(LedParams(trace=True))
    view.add([THINKING], num_tokens=1)
    view.add([THINKING, 0], num_tokens=5)  # those of tokens 2 and 3 never came
    reported = view.report(6)  # nor those of the last
    assert reported["led_think"] == [True, False, False, True, False, False]
    assert reported["led_stats"]["unreported"] == 3
    assert "unreported" not in RequestView(LedParams()).report(0)["led_stats"]


def test_a_scheduler_that_cannot_report_its_status_is_no_server_without_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving()
    monkeypatch.setattr(runtime, "_runtime", serving)
    result = SimpleNamespace(internal_state={})
    HANDLERS["sglang.srt.managers.scheduler.Scheduler.get_internal_state"](result, None, None)  # it has no facts()
    assert serving.num_step_failures == 1

    async def states() -> list[Any]:
        return [result.internal_state]

    with pytest.raises(HTTPException, match="could not be told"):
        asyncio.run(info.scheduler_status(SimpleNamespace(get_internal_state=states)))


def test_a_failed_record_leaves_every_row_with_the_engines_token() -> None:
    request_row = RequestRow(ResolvedRequest(LedParams(), seed=1, is_seeded=True, sample=0))
    current = SimpleNamespace(num_step_failures=0, sends_records=False, counts=Counts(8, torch.device("cpu")))
    broken = SimpleNamespace()  # has none of a context's tensors
    record = sampler._record(LedBatch((request_row, RequestRow(None))), broken, current)  # type: ignore[arg-type]
    assert current.num_step_failures == 1
    assert isinstance(record, StepRecord)
    assert record.entries(0, 1) == [FALLBACK]
    assert record.entries(1, 1) == []
    record.close()
    assert current.counts.status()["fallbacks"] == current.counts.status()["tokens"]["led"] == 1


def test_a_lora_wrapped_head_is_refused_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = SimpleNamespace(pp_group=SimpleNamespace(is_last_rank=True), attn_dp_size=1)
    parallel.tp_group = SimpleNamespace(world_size=1)
    for module in (startup, ranks):
        monkeypatch.setattr(module, "get_parallel", lambda: parallel)
    for head, is_refused in ((SimpleNamespace(), False), (SimpleNamespace(apply_lora=None), True)):
        model, args = SimpleNamespace(lm_head=head), SimpleNamespace()
        runner = SimpleNamespace(model=model, server_args=args)
        if is_refused:
            with pytest.raises(CaptureError, match="--lora-target-modules"):
                startup._refuse_unsupported(ServerConfig(num_layers=12), runner)
        else:
            startup._refuse_unsupported(ServerConfig(num_layers=12), runner)


def test_each_fault_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two that are caught in one hook are two; one that comes back with every token is one."""

    def first() -> None:
        raise ValueError("the first")

    def second() -> None:
        raise ValueError("the second")

    serving = Serving()
    for count in (partial(runtime.count_failure, serving), responses.count_failure):
        caplog.clear()
        for fail in (first, second, first, second):
            try:
                fail()
            except ValueError:
                count(f"a place of {count}")
        assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["the first", "the second"]
    assert serving.num_step_failures == 4


@pytest.mark.parametrize("target", HOOK_TARGETS)
def test_a_recovery_names_parameters_of_its_row(target: str) -> None:
    """`call["name"]` and `call.once(name=...)` would otherwise fail only in a fault."""
    handler = HANDLERS[target].handler
    for function in (handler.recover, handler.is_start):
        names = set()
        for node in ast.walk(ast.parse(inspect.getsource(function))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "call":
                names.add(ast.literal_eval(node.slice))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "call.once":
                names |= {str(keyword.arg) for keyword in node.keywords}
        assert names <= set(HOOK_TARGETS[target].parameters), (function, names)
