"""The engine samples what LED did not decide: fewer rows where that is free to choose, all of them otherwise."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.integration import step
from led_sglang.integration.sampler import LedSamplerMixin, dress
from led_sglang.integration.step import StepContext
from led_sglang.ops import Head, LedStep, Noise, host, led_step
from led_sglang.ops.standing import Standing
from tests.unit.integration.fakes import batch_of, sampling_info, seat

V = 16


class Engine:
    """Samples the arg-max and remembers what it was shown."""

    def __init__(self, tells_masks: bool = True) -> None:
        self.output_logprob_processor = None
        self.has_masks = tells_masks
        self.seen: list[list[int]] = []

    def _sample_from_probs(self, probs: Tensor, info: Any, positions: Tensor, simple_sampling_case: bool) -> Any:
        assert len(probs) == len(positions)
        self.seen.append(positions.tolist())
        ids = probs.argmax(-1).to(torch.int32)
        return (ids, None) if self.has_masks else ids


def decided(context: StepContext, logits: Tensor) -> LedStep:
    """Every row takes token 3: the only one that the logits allow."""
    rows = replace(context.rows.params, active=context.active)
    only = torch.full_like(logits, -torch.inf)
    only[:, 3] = 0.0
    return led_step(
        context.rows.pick(only), torch.zeros(0, 1, 1), Head(torch.zeros(V, 1), V), rows, Noise(*context.noise)
    )


def context_of(methods: list[str | None], active: list[bool], ok: list[bool] | None = None, **info: Any) -> StepContext:
    led = batch_of(*(seat(method, is_seeded=False, **({"depth": 1} if method == "led" else {})) for method in methods))
    batch_info = sampling_info(led)
    vars(batch_info).update(info)
    rows = led.device_rows(batch_info)
    count, runtime = len(active), SimpleNamespace(num_step_failures=0, forget_mixtures=lambda slots: None)
    zeros = torch.zeros(count, dtype=torch.int64)
    is_active = torch.tensor(active)
    noise = torch.zeros(2, count).double()
    standing = Standing(zeros, zeros, is_active, is_active, zeros, noise)
    context = StepContext(runtime, rows, batch_info, standing, noise)
    context.step = decided(context, torch.zeros(len(methods), V))
    if ok is not None:
        context.step = replace(context.step, ok=torch.tensor(ok))
    return context


def sample(context: StepContext | None, num_rows: int, engine: Any, simple: bool = True) -> tuple[list[int], Any]:
    dressed = engine if isinstance(engine, LedSamplerMixin) else dress(engine)
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


@pytest.mark.parametrize("tells_masks", [True, False])
def test_a_batch_that_led_decided_costs_no_draw(tells_masks: bool) -> None:
    engine = Engine(tells_masks)
    for _ in range(3):
        assert sample(context_of(["led"] * 3, [True] * 3), 3, engine) == ([3, 3, 3], None)
    assert engine.seen == [[0]], "the first time one row, to learn what a draw returns"


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


def test_where_the_host_may_not_look_the_engine_samples_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True] * 2)
    monkeypatch.setattr(host, "can_look", lambda device: False)
    assert sample(context, 2, engine)[0] == [3, 3]
    assert engine.seen == [[0, 1]]


@pytest.mark.parametrize("name", ["open_rows", "apply"])
def test_a_fault_leaves_the_engines_tokens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    engine, context = Engine(), context_of(["led"] * 2, [True] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(step.StepContext, name, lambda *_: 1 / 0)
        dressed = dress(engine)
        dressed.led_context = context
        ids, _ = dressed._sample_from_probs(torch.eye(V)[[5, 6]], context.info, torch.arange(2), True)
    assert ids.tolist() == [5, 6]
    assert context.runtime.num_step_failures == 1
