"""Which requests have penalties or a bias, whose tables a step reads, and what the other methods compare layers by."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.scheduler.batch import LedBatch, RequestRow, request_row_of
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.integration.scheduler.methods.edits import edits_of, is_edited, unedited, unedited_logits
from led_sglang.integration.scheduler.methods.registry import HANDLERS
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.methods.confident import confident_logits
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.sled import sled_logits
from led_sglang.ops.types import StepInputs
from led_sglang.wire import RESOLVED_KEY
from tests.unit.integration.fakes import batch_of, request_row, sampling_info, sampling_params
from tests.unit.integration.scheduler.methods.steps import LAYERS, V, context_of, group_of, head, logits_for

ASKED: dict[str, Any] = {
    "frequency_penalty": -0.1,
    "presence_penalty": 0.1,
    "repetition_penalty": 1.1,
    "min_new_tokens": 3,
    "logit_bias": {"5": -1.0},
}


@pytest.mark.parametrize("name", ASKED)
def test_a_request_with_any_of_them_is_edited(name: str) -> None:
    stamp = ResolvedRequest(LedParams("led"), 1, True, 0).to_wire()
    for changes, expected in (({}, False), ({name: ASKED[name]}, True)):
        params = sampling_params(**changes, custom_params={RESOLVED_KEY: stamp})
        req: Any = SimpleNamespace(sampling_params=params, origin_input_ids=[1], output_ids=[])
        assert is_edited(params) is expected
        assert request_row_of(req, None).is_edited is expected


def edited(method: str | None, **params: Any) -> RequestRow:
    return replace(request_row(method, **params), is_edited=True)


def test_rows_with_edits_are_known_through_filter_and_merge() -> None:
    led = batch_of(request_row("led"), edited("led"), edited(None), edited("dola"), request_row("led"), edited("led"))
    rows = led.device_rows(sampling_info(led))
    assert rows.edited is not None and rows.edited.tolist() == [1, 4]  # LED's, among ours
    plain = led.filter([0, 2, 4])
    assert plain is not None and plain.device_rows(sampling_info(plain)).edited is None
    both = LedBatch.merge(plain, 3, led, 6)
    assert both is not None
    merged = both.device_rows(sampling_info(both))
    assert merged.edited is not None and merged.edited.tolist() == [3, 6]
    assert [b.rewrites_edited for b in (led, plain, both)] == [True, False, True]


def tables(num_rows: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(4)
    additive, bias = torch.randn(2, num_rows, V, generator=rng)
    scaling = 1 + torch.rand(num_rows, V, generator=rng)
    return {"acc_additive_penalties": additive, "acc_scaling_penalties": scaling, "logit_bias": bias}


def test_a_step_reads_the_batchs_own_tables() -> None:
    given, rows = tables(4), torch.tensor([2, 0])
    edits = edits_of(SimpleNamespace(**given), rows, rows)
    assert edits is not None and edits.rows is rows
    assert [edits.additive, edits.scaling, edits.bias] == list(given.values())
    assert edits_of(SimpleNamespace(**dict.fromkeys(given)), rows, rows) is None


def test_logits_are_copied_only_where_layers_are_compared_under_edits() -> None:
    logits = logits_for(3)
    for request_rows, copied in (
        ((edited("led"), request_row("dola"), request_row("confident")), {}),
        ((edited("soft_thinking"), edited(None), request_row("dola")), {}),
        ((request_row("led"), edited("dola"), request_row("confident")), {"dola": [1], "confident": [2]}),
    ):
        led = batch_of(*request_rows)
        found = unedited_logits(led, sampling_info(led), logits)
        assert set(found) == set(copied)
        assert all(torch.equal(found[method], logits[rows]) for method, rows in copied.items())
    assert unedited_logits(None, None, logits) == {}


@pytest.mark.parametrize("method", ["dola", "confident", "sled"])
@pytest.mark.parametrize("has_processor", [False, True])
def test_layers_are_compared_without_edits(method: str, has_processor: bool) -> None:
    """A custom logit processor's change stays with the final layer."""
    led = batch_of(request_row("led"), edited(method))
    context, plain = context_of(led), logits_for(2)
    context.info = SimpleNamespace(**tables(2), has_custom_logit_processor=has_processor)
    edits = LogitEdits(*tables(2).values())
    final = edits.apply(plain.clone())
    final[1, 4] = -torch.inf  # a grammar's
    change = torch.zeros(V)
    if has_processor:
        change[2] = 1.5
        final[1] += change
    before = final.clone()
    context.runtime.unedited_logits = {method: plain[[1]]}
    HANDLERS[method](context, group_of(context, method), final)
    assert torch.equal(final[0], before[0])

    own = plain[[1]] + change, LogitEdits(*(table[[1]] for table in tables(2).values()))
    states = context.runtime.capture.states
    if method == "dola":
        early = torch.stack([states[LAYERS.index(layer), 1] for layer in (2, 4, 6)])[:, None]
        is_candidate = torch.ones(1, 3, dtype=torch.bool)
        expected, _ = dola_logits(before[[1]], early, is_candidate, torch.tensor([0.1]), head(), *own)
    elif method == "sled":
        early = states[[LAYERS.index(layer) for layer in range(1, 12)], 1][:, None]
        expected, is_evolved = sled_logits(
            before[[1]], early, torch.tensor([2.0]), torch.tensor([10]), head(), 256, *own
        )
        assert is_evolved.all()
    else:
        latents = states[[LAYERS.index(layer) for layer in range(11, 2, -1)], 1][:, None]
        expected, _ = confident_logits(before[[1]], latents, torch.tensor([10]), head(), *own)
    torch.testing.assert_close(final[[1]], expected)


def test_what_a_processor_forces_is_no_number_to_take_off() -> None:
    """SGLang's thinking budgets leave one token: its logit says nothing of the others'."""
    led = batch_of(edited("dola"))
    context = context_of(led)
    info: Any = SimpleNamespace(**tables(1), has_custom_logit_processor=True)
    plain, final = logits_for(1), torch.full((1, V), -torch.inf)
    final[0, 3] = 0.0
    found, edits = unedited(info, group_of(context, "dola"), final, plain)
    assert found.isfinite().all() and edits is not None


def test_rows_with_edits_are_not_in_the_one_pass() -> None:
    led = batch_of(request_row("none"), request_row("led"), edited("led"), request_row("led"), edited("led"))
    rows = led.device_rows(sampling_info(led))
    one_pass_state = OnePassState("one_pass", TorchBackend(allows_dynamic_shapes=True), 7, 12, torch.device("cpu"))
    zeros: Tensor = torch.zeros(4, dtype=torch.float64)
    one_pass_state.fill_mask(rows, StepInputs(torch.ones(4, dtype=torch.bool), zeros, zeros), 5)
    assert one_pass_state.mask[:5].tolist() == [False, True, False, True, False]
