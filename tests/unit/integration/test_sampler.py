"""The engine samples what LED did not decide: fewer rows where that is free to choose, all of them otherwise."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler import sampler, step
from led_sglang.integration.scheduler.counters import Counts
from led_sglang.integration.scheduler.sampler import wrap_sampler
from led_sglang.integration.scheduler.step import StepContext
from led_sglang.ops import Head, LedStep, RowInputs, backend_for, led_step
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.integration.fakes import batch_of, request_row, sampling_info

V = 16


class Engine:
    """Samples the arg-max and remembers what it was shown."""

    def __init__(self, tells_masks: bool = True) -> None:
        self.output_logprob_processor = None
        self.has_masks = tells_masks
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


def decided(context: StepContext, logits: Tensor) -> LedStep:
    """Every row takes token 3: the only one that the logits allow."""
    only = torch.full_like(logits, -torch.inf)
    only[:, 3] = 0.0
    return led_step(
        context.rows.pick(only), torch.zeros(0, 1, 1), Head(torch.zeros(V, 1), V), context.rows.params, context.inputs
    )


def context_of(
    methods: list[str | None],
    active: list[bool],
    ok: list[bool] | None = None,
    is_seeded: bool = False,
    **info: Any,
) -> StepContext:
    led = batch_of(
        *(request_row(method, is_seeded=is_seeded, **({"depth": 1} if method == "led" else {})) for method in methods)
    )
    batch_info = sampling_info(led)
    vars(batch_info).update(info)
    rows = led.device_rows(batch_info)
    count, runtime = (
        len(active),
        SimpleNamespace(
            num_step_failures=0, has_forward_failed=False, failed_ranks=None, forget_mixtures=lambda slots: None
        ),
    )
    runtime.config, runtime.counts = ServerConfig(), Counts(8, torch.device("cpu"))
    runtime.backend = backend_for("numba", torch.device("cpu"))
    zeros = torch.zeros(count, dtype=torch.int64)
    is_active = torch.tensor(active)
    noise = torch.zeros(count).double()
    inputs = RowInputs(is_active, noise, noise, zeros, zeros, is_active, zeros)
    context = StepContext(runtime, rows, batch_info, inputs)
    context.step = decided(context, torch.zeros(len(methods), V))
    if ok is not None:
        context.step = replace(context.step, ok=torch.tensor(ok))
    return context


def sample(context: StepContext | None, num_rows: int, engine: Engine, simple: bool = True) -> tuple[list[int], Any]:
    dressed = wrap_sampler(engine)
    dressed.led_context = context
    probs = torch.eye(V)[torch.arange(5, 5 + num_rows)]  # the engine's token of row i is 5 + i
    info = None if context is None else context.info
    result = dressed._sample_from_probs(probs, info, torch.arange(num_rows), simple)
    ids, rest = result if engine.has_masks else (result, None)
    assert ids.dtype == torch.int32
    if context is not None:
        context.apply(ids)
    return ids.tolist(), rest


@pytest.mark.parametrize("tells_masks", [True, False])
def test_only_what_led_left_open_is_sampled(tells_masks: bool) -> None:
    engine = Engine(tells_masks)
    context = context_of(["led"] * 4, [True, False, True, True], ok=[True, True, False, True])
    assert sample(context, 4, engine)[0] == [3, 6, 7, 3]  # row 1 is outside its phase, row 2 was not finite
    assert engine.seen == [[1, 2]]


@pytest.mark.parametrize("other", [None, "none", "dola"])
def test_other_requests_draw_as_in_a_stock_batch(other: str | None) -> None:
    """From the engine's generator, which a draw for fewer rows would leave elsewhere."""
    engine = Engine()
    active = [True, True] if other != "dola" else [True, False, True]
    assert sample(context_of(["led", other, "led"], active), 3, engine)[0] == [3, 6, 3]
    assert engine.seen == [[0, 1, 2]]


def test_a_decided_batch_is_drawn_one_row_where_more_than_tokens_is_wanted() -> None:
    engine = Engine()
    assert sample(context_of(["led"] * 3, [True] * 3), 3, engine)[0] == [3, 3, 3]
    assert engine.seen == [[0]]


def forward(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, context: StepContext, return_logprob: bool = False
) -> list[int]:
    """A whole call of the sampler; LED's step is `decided`, on the processed logits, and may be a failure."""
    found = context.step

    def decide(self: StepContext, logits: Tensor) -> None:
        assert logits.eq(1.0).all(), "processed once"
        self.is_decided = True
        if found is None:
            raise ArithmeticError
        self.step = found

    context.step = None
    monkeypatch.setattr(StepContext, "decide", decide)
    monkeypatch.setattr(StepContext, "finish", lambda self, ids: setattr(self, "is_finished", True))
    context.runtime.forward_batch = SimpleNamespace(led_context=context)
    monkeypatch.setattr(sampler, "runtime", lambda: context.runtime)
    num_rows = len(context.active)
    output = SimpleNamespace(next_token_logits=torch.zeros(num_rows, V), customized_info=None)
    ids = wrap_sampler(engine).forward(output, context.info, return_logprob, None, None, torch.arange(num_rows))
    assert ids.dtype == torch.int32 and ids.tolist() == engine.synced
    assert context.is_finished and sampler.RECORD_KEY in output.customized_info
    assert engine.num_preprocessed == 1
    ids_list: list[int] = ids.tolist()
    return ids_list


def test_a_batch_that_led_decides_alone_never_reaches_the_engines_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context = Engine(), context_of(["led"] * 3, [True] * 3)
    assert forward(monkeypatch, engine, context) == [3, 3, 3]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("ok", "tokens", "seen"), [([True, False, True], [3, 0, 3], [[1]]), ([False] * 3, [0] * 3, [[0, 1, 2]])]
)
def test_a_row_that_is_not_finite_is_drawn(
    monkeypatch: pytest.MonkeyPatch, ok: list[bool], tokens: list[int], seen: list[list[int]]
) -> None:
    engine = Engine()
    assert forward(monkeypatch, engine, context_of(["led"] * 3, [True] * 3, ok)) == tokens
    assert engine.seen == seen


@pytest.mark.parametrize("return_logprob", [True, False])
def test_logprobs_and_filtered_rows_outside_their_phase_are_the_engines(
    monkeypatch: pytest.MonkeyPatch, return_logprob: bool
) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True, return_logprob], need_top_p_sampling=True)
    assert forward(monkeypatch, engine, context, return_logprob) == [3, 3 if return_logprob else 0]
    assert engine.seen == ([[0]] if return_logprob else [[1]])


@pytest.mark.parametrize(
    ("changes", "is_ours"),
    [
        ({}, True),
        ({"need_top_p_sampling": True}, False),
        ({"need_top_k_sampling": True}, False),
        ({"need_min_p_sampling": True}, False),
        ({"is_seeded": True}, False),
        ({"backend": "fused"}, False),
    ],
)
def test_rows_outside_their_phase_are_leds_where_the_engine_would_draw_from_the_whole_distribution(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_ours: bool
) -> None:
    changes = dict(changes)
    engine, is_seeded, backend = Engine(), changes.pop("is_seeded", False), changes.pop("backend", "numba")
    context = context_of(["led"] * 3, [True, False, False], is_seeded=is_seeded, **changes)
    context.runtime.backend = backend_for(backend, torch.device("cpu"))
    monkeypatch.setattr(StepContext, "draw_seeded", lambda self, probs: None)
    assert forward(monkeypatch, engine, context) == [3, *([3, 3] if is_ours else [0, 0])]
    assert engine.seen == ([] if is_ours else [[1, 2]])


def test_a_broken_row_outside_its_phase_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context = Engine(), context_of(["led"] * 3, [True, False, False], ok=[True, True, False])
    assert forward(monkeypatch, engine, context) == [3, 3, 0]
    assert engine.seen == [[2]]


def test_where_no_row_is_in_its_phase_the_engine_samples_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [False, False])
    context.step = replace(context.step, ok=torch.zeros(2, dtype=torch.bool))  # decide() makes no step at all
    assert forward(monkeypatch, engine, context) == [0, 0]


def test_a_step_that_fails_leaves_all_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True] * 2)
    context.step = None
    assert forward(monkeypatch, engine, context) == [0, 0]
    assert engine.seen == [[0, 1]] and context.runtime.num_step_failures == 1


@pytest.mark.parametrize(
    ("info", "simple"),
    [({"sampling_seed": torch.zeros(3)}, True), ({"sampling_mask_batch_indices": torch.zeros(1)}, True), ({}, False)],
)
def test_an_engine_that_tells_more_is_shown_every_row(info: dict[str, Any], simple: bool) -> None:
    engine = Engine()
    assert sample(context_of(["led"] * 3, [True] * 3, **info), 3, engine, simple)[0] == [3, 3, 3]
    assert engine.seen == [[0, 1, 2]]


def test_without_a_step_the_engine_samples_all() -> None:
    failed = context_of(["led"] * 2, [True] * 2)
    failed.step = None
    for context in (failed, None):
        engine = Engine()
        assert sample(context, 2, engine)[0] == [5, 6]
        assert engine.seen == [[0, 1]]


def test_where_the_host_may_not_look_the_engine_samples_all() -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True] * 2)
    context.runtime.backend = TorchBackend(allows_dynamic_shapes=False)
    assert sample(context, 2, engine)[0] == [3, 3]
    assert engine.seen == [[0, 1]]


@pytest.mark.parametrize("name", ["rows_for_engine", "apply"])
def test_a_fault_leaves_the_engines_tokens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(step.StepContext, name, lambda *_: 1 / 0)
        dressed = wrap_sampler(engine)
        dressed.led_context = context
        ids, _ = dressed._sample_from_probs(torch.eye(V)[[5, 6]], context.info, torch.arange(2), True)
    assert ids.tolist() == [5, 6]
    assert context.runtime.num_step_failures == 1


def test_a_step_that_failed_writes_nothing_of_another_methods() -> None:
    """What a method forced before the fault is not told, so it is not written either."""
    context = context_of(["led", "led"], [True, True])
    forced = torch.tensor([0]), torch.tensor([7]), torch.tensor([True])

    def fail() -> None:
        context.overrides.append(forced)
        raise ValueError("after a method has forced its tokens")

    sampler._guard(context, fail)
    tokens = torch.tensor([5, 6], dtype=torch.int32)
    context.apply(tokens)
    assert context.failed and tokens.tolist() == [5, 6]


def test_a_write_that_fails_leaves_the_engines_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(["led", "led"], [True, True])
    context.overrides.append((torch.tensor([0]), torch.tensor([7]), torch.tensor([True])))
    monkeypatch.setattr(context.runtime.backend, "write_tokens", lambda *args: 1 / 0)
    tokens = torch.tensor([5, 6], dtype=torch.int32)
    sampler._guard(context, context.apply, tokens)
    assert context.failed and tokens.tolist() == [5, 6]
