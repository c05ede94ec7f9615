"""The engine samples what LED did not decide: fewer rows where that is free to choose, all of them otherwise."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.step import call as call_module
from led_sglang.integration.scheduler.step import sampler
from led_sglang.integration.scheduler.step.call import SamplerCall
from led_sglang.integration.scheduler.step.decision import Decision
from led_sglang.integration.scheduler.step.inputs import SamplerInputs
from led_sglang.integration.scheduler.step.sampler import wrap_sampler
from led_sglang.ops import Head, LedStep, RowInputs, backend_for, led_step
from tests.unit.integration.fakes import batch_of, request_row, sampling_info

V = 16


class Engine:
    """Samples the arg-max and remembers what it was shown."""

    def __init__(self, reports_masks: bool = True) -> None:
        self.output_logprob_processor = None
        self.has_masks = reports_masks
        self.seen: list[list[int]] = []
        self.num_preprocessed = 0

    def forward(self, output: Any, info: Any, return_logprob: bool, top: Any, ids: Any, positions: Tensor) -> Tensor:
        """The order of SGLang's."""
        logits = self._preprocess_logits(output.next_token_logits, info)
        assert logits.eq(1.0).all(), "processed once"
        drawn = self._sample_from_probs(logits.softmax(-1), info, positions, True)
        token_ids: Tensor = drawn[0] if isinstance(drawn, tuple) else drawn
        self._sync_token_ids_across_tp(token_ids, info)
        return token_ids

    def _preprocess_logits(self, logits: Tensor, info: Any) -> Tensor:
        self.num_preprocessed += 1
        return logits + 1.0  # a custom processor

    def _sync_token_ids_across_tp(self, token_ids: Tensor, info: Any) -> None:
        self.synced = token_ids.tolist()

    def _sample_from_probs(self, probs: Tensor, info: Any, positions: Tensor, simple_sampling_case: bool) -> Any:
        assert len(probs) == len(positions)
        self.seen.append(positions.tolist())
        ids = probs.argmax(-1).to(torch.int32)
        return (ids, None) if self.has_masks else ids

    def _sample_from_logprobs(self, logprobs: Tensor, info: Any, positions: Tensor) -> Tensor:
        return positions.to(torch.int32)


def decided(inputs: SamplerInputs, num_rows: int) -> LedStep:
    """Every row takes token 3: the only one that the logits allow."""
    only = torch.full((num_rows, V), -torch.inf)
    only[:, 3] = 0.0
    head = Head(torch.zeros(V, 1), V)
    return led_step(inputs.rows.pick(only), torch.zeros(0, 1, 1), head, inputs.rows.params, inputs.row_inputs)


def call_of(
    methods: list[str | None],
    active: list[bool],
    ok: list[bool] | None = None,
    is_seeded: bool = False,
    backend: str = "numba",
    **info: Any,
) -> SamplerCall:
    led = batch_of(
        *(request_row(method, is_seeded=is_seeded, **({"depth": 1} if method == "led" else {})) for method in methods)
    )
    batch_info = sampling_info(led)
    vars(batch_info).update(info)
    chosen = backend_for(backend, torch.device("cpu"))
    runtime = SimpleNamespace(
        num_step_failures=0,
        sends_records=False,
        has_forward_failed=False,
        failed_ranks=None,
        ranks=None,
        forget_mixtures=lambda slots: None,
        advance=lambda *_: None,
        config=ServerConfig(),
        backend=chosen,
        allows_dynamic_shapes=chosen.allows_dynamic_shapes,
        counts=Counts(8, torch.device("cpu")),
    )
    zeros, is_active = torch.zeros(len(active), dtype=torch.int64), torch.tensor(active)
    noise = torch.zeros(len(active)).double()
    row_inputs = RowInputs(is_active, noise, noise, zeros, zeros, is_active, zeros)
    inputs = SamplerInputs(runtime, led.device_rows(batch_info), batch_info, row_inputs)  # type: ignore[arg-type]
    call, step = SamplerCall(inputs), decided(inputs, len(methods))
    call.decision = Decision(inputs, step if ok is None else replace(step, ok=torch.tensor(ok)))
    return call


def sample(call: SamplerCall | None, num_rows: int, engine: Engine, simple: bool = True) -> tuple[list[int], Any]:
    wrapped: Any = wrap_sampler(engine)  # type: ignore[arg-type]
    wrapped.led_call = call
    probs = torch.eye(V)[torch.arange(5, 5 + num_rows)]  # the engine's token of row i is 5 + i
    info = None if call is None else call.inputs.info
    result = wrapped._sample_from_probs(probs, info, torch.arange(num_rows), simple)
    ids, rest = result if engine.has_masks else (result, None)
    assert ids.dtype == torch.int32
    if call is not None:
        call.write(ids)
    return ids.tolist(), rest


@pytest.mark.parametrize("reports_masks", [True, False])
def test_only_what_led_left_open_is_sampled(reports_masks: bool) -> None:
    engine = Engine(reports_masks)
    call = call_of(["led"] * 4, [True, False, True, True], ok=[True, True, False, True])
    assert sample(call, 4, engine)[0] == [3, 6, 7, 3]  # row 1 is outside its phase, row 2 was not finite
    assert engine.seen == [[1, 2]]


@pytest.mark.parametrize("is_seeded", [True, False])
def test_seeded_rows_of_an_engine_that_samples_from_logprobs_are_drawn_too(
    monkeypatch: pytest.MonkeyPatch, is_seeded: bool
) -> None:
    """--rl-on-policy-target; unseeded batches pay nothing."""
    drawn: list[Tensor] = []

    def draw(inputs: SamplerInputs, probs: Tensor) -> None:
        drawn.append(probs)

    monkeypatch.setattr(call_module, "draw_seeded", draw)
    wrapped: Any = wrap_sampler(Engine())  # type: ignore[arg-type]
    wrapped.led_call = call_of(["led"] * 2, [True, False], is_seeded=is_seeded)
    logprobs = torch.full((2, V), -2.0)
    assert wrapped._sample_from_logprobs(logprobs, None, torch.arange(2)).tolist() == [0, 1]
    assert len(drawn) == is_seeded
    assert all(torch.equal(probs, logprobs.exp()) for probs in drawn)


@pytest.mark.parametrize("other", [None, "none", "dola"])
def test_other_requests_draw_as_in_a_stock_batch(other: str | None) -> None:
    """From the engine's generator, which a draw for fewer rows would leave elsewhere."""
    engine = Engine()
    active = [True, True] if other != "dola" else [True, False, True]
    assert sample(call_of(["led", other, "led"], active), 3, engine)[0] == [3, 6, 3]
    assert engine.seen == [[0, 1, 2]]


def test_a_decided_batch_is_drawn_one_row_where_more_than_tokens_is_wanted() -> None:
    engine = Engine()
    assert sample(call_of(["led"] * 3, [True] * 3), 3, engine)[0] == [3, 3, 3]
    assert engine.seen == [[0]]


def forward(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, call: SamplerCall, return_logprob: bool = False
) -> list[int]:
    """A whole call of the sampler; LED's step is `decided`, on the processed logits, and may be a failure."""
    found, inputs = call.known.step, call.inputs
    made: list[SamplerCall] = []

    def decide(inputs: SamplerInputs, logits: Tensor, draws_inactive: bool) -> Decision:
        assert logits.eq(1.0).all(), "processed once"
        if found is None:
            raise ArithmeticError
        return Decision(inputs, found, draws_inactive=draws_inactive)

    def make(inputs: SamplerInputs) -> SamplerCall:
        made.append(SamplerCall(inputs))
        return made[-1]

    monkeypatch.setattr(call_module, "decide", decide)
    monkeypatch.setattr(sampler, "SamplerCall", make)
    inputs.runtime.forward_batch = SimpleNamespace(led_inputs=inputs)  # type: ignore[assignment]
    monkeypatch.setattr(sampler, "runtime", lambda: inputs.runtime)
    num_rows = len(inputs.active)
    output: Any = SimpleNamespace(next_token_logits=torch.zeros(num_rows, V), customized_info=None)
    wrapped: Any = wrap_sampler(engine)  # type: ignore[arg-type]
    ids = wrapped.forward(output, inputs.info, return_logprob, None, None, torch.arange(num_rows))
    assert ids.dtype == torch.int32 and ids.tolist() == engine.synced
    assert len(made) == 1 and made[0].is_finished and sampler.RECORD_KEY in output.customized_info
    assert engine.num_preprocessed == 1
    ids_list: list[int] = ids.tolist()
    return ids_list


def test_a_batch_that_led_decides_alone_never_reaches_the_engines_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, call = Engine(), call_of(["led"] * 3, [True] * 3)
    assert forward(monkeypatch, engine, call) == [3, 3, 3]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("ok", "tokens", "seen"), [([True, False, True], [3, 0, 3], [[1]]), ([False] * 3, [0] * 3, [[0, 1, 2]])]
)
def test_a_row_that_is_not_finite_is_drawn(
    monkeypatch: pytest.MonkeyPatch, ok: list[bool], tokens: list[int], seen: list[list[int]]
) -> None:
    engine = Engine()
    assert forward(monkeypatch, engine, call_of(["led"] * 3, [True] * 3, ok)) == tokens
    assert engine.seen == seen


@pytest.mark.parametrize("return_logprob", [True, False])
def test_logprobs_and_filtered_rows_outside_their_phase_are_the_engines(
    monkeypatch: pytest.MonkeyPatch, return_logprob: bool
) -> None:
    engine, call = Engine(), call_of(["led"] * 2, [True, return_logprob], need_top_p_sampling=True)
    assert forward(monkeypatch, engine, call, return_logprob) == [3, 3 if return_logprob else 0]
    assert engine.seen == ([[0]] if return_logprob else [[1]])


@pytest.mark.parametrize(
    ("changes", "is_ours"),
    [
        ({}, True),
        ({"need_top_p_sampling": True}, False),
        ({"need_top_k_sampling": True}, False),
        ({"need_min_p_sampling": True}, False),
        ({"is_seeded": True}, False),
        ({"backend": "torch"}, False),
    ],
)
def test_rows_outside_their_phase_are_leds_where_the_engine_would_draw_from_the_whole_distribution(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_ours: bool
) -> None:
    engine, call = Engine(), call_of(["led"] * 3, [True, False, False], **changes)
    monkeypatch.setattr(call_module, "draw_seeded", lambda inputs, probs: None)
    assert forward(monkeypatch, engine, call) == [3, *([3, 3] if is_ours else [0, 0])]
    assert engine.seen == ([] if is_ours else [[1, 2]])


def test_a_broken_row_outside_its_phase_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, call = Engine(), call_of(["led"] * 3, [True, False, False], ok=[True, True, False])
    assert forward(monkeypatch, engine, call) == [3, 3, 0]
    assert engine.seen == [[2]]


def test_where_no_row_is_in_its_phase_the_engine_samples_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """`decide` makes no step at all; here none of its rows is ok."""
    engine, call = Engine(), call_of(["led"] * 2, [False, False], ok=[False, False])
    assert forward(monkeypatch, engine, call) == [0, 0]


def test_a_step_that_fails_leaves_all_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, call = Engine(), call_of(["led"] * 2, [True] * 2)
    call.decision = None
    assert forward(monkeypatch, engine, call) == [0, 0]
    assert engine.seen == [[0, 1]] and call.inputs.runtime.num_step_failures == 1


@pytest.mark.parametrize(
    ("info", "simple"),
    [({"sampling_seed": torch.zeros(3)}, True), ({"sampling_mask_batch_indices": torch.zeros(1)}, True), ({}, False)],
)
def test_an_engine_that_reports_more_is_shown_every_row(info: dict[str, Any], simple: bool) -> None:
    engine = Engine()
    assert sample(call_of(["led"] * 3, [True] * 3, **info), 3, engine, simple)[0] == [3, 3, 3]
    assert engine.seen == [[0, 1, 2]]


def test_without_a_step_the_engine_samples_all() -> None:
    failed = call_of(["led"] * 2, [True] * 2)
    failed.decision = None
    for call in (failed, None):
        engine = Engine()
        assert sample(call, 2, engine)[0] == [5, 6]
        assert engine.seen == [[0, 1]]


def test_where_shapes_are_fixed_the_engine_samples_all() -> None:
    engine, call = Engine(), call_of(["led"] * 2, [True] * 2)
    call.inputs.runtime.allows_dynamic_shapes = False  # type: ignore[misc]
    assert sample(call, 2, engine)[0] == [3, 3]
    assert engine.seen == [[0, 1]]


@pytest.mark.parametrize("name", ["rows_for_engine", "write"])
def test_a_fault_leaves_the_engines_tokens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    engine, call = Engine(), call_of(["led"] * 2, [True] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(Decision, name, lambda *_: 1 / 0)
        wrapped: Any = wrap_sampler(engine)  # type: ignore[arg-type]
        wrapped.led_call = call
        ids, _ = wrapped._sample_from_probs(torch.eye(V)[[5, 6]], call.inputs.info, torch.arange(2), True)
    assert ids.tolist() == [5, 6]
    assert call.inputs.runtime.num_step_failures == 1


def test_a_step_that_failed_writes_nothing_of_another_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method forced before the fault is not reported, so it is not written either."""
    call = call_of(["led", "led"], [True, True])
    assert call.decision is not None
    forced = (torch.tensor([0]), torch.tensor([7]), torch.tensor([True]))
    call.decision = replace(call.decision, overrides=(forced,))
    monkeypatch.setattr(call_module, "draw_seeded", lambda *_: 1 / 0)
    object.__setattr__(call.inputs.rows, "seeded", torch.tensor([0]))
    call.draw_seeded(torch.zeros(2, V))
    tokens = torch.tensor([5, 6], dtype=torch.int32)
    call.write(tokens)
    assert call.has_failed and tokens.tolist() == [5, 6] and call.known.step is None


def test_a_write_that_fails_leaves_the_engines_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(["led", "led"], [True, True])
    assert call.decision is not None
    forced = (torch.tensor([0]), torch.tensor([7]), torch.tensor([True]))
    call.decision = replace(call.decision, overrides=(forced,))
    monkeypatch.setattr(type(call.inputs.runtime.backend), "write_tokens", lambda *args: 1 / 0)
    tokens = torch.tensor([5, 6], dtype=torch.int32)
    call.write(tokens)
    assert call.has_failed and tokens.tolist() == [5, 6]
