"""The handlers of the other methods: which rows they rewrite, which tokens they force, what they remember."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from led_sglang.config.fields import SELECT_METHODS
from led_sglang.config.methods import METHODS
from led_sglang.integration.scheduler.methods.registry import HANDLERS, largest_legal, soft
from led_sglang.ops.methods.confident import confident_logits
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.sled import sled_logits
from led_sglang.ops.rows.noise import uniforms
from tests.unit.integration.fakes import CLOSE_ID, batch_of, request_row
from tests.unit.integration.scheduler.methods.steps import CONFIG, LAYERS, context_of, group_of, head, logits_for


def test_every_method_but_leds_own_has_a_handler() -> None:
    assert set(HANDLERS) == set(METHODS) - {"led", "none"}


def test_dola_rewrites_its_rows_with_their_own_half() -> None:
    led = batch_of(
        request_row("led"), request_row("dola", layers="high"), request_row(None), request_row("dola", relative_top=0.5)
    )
    context, logits = context_of(led), logits_for(4)
    before = logits.clone()
    HANDLERS["dola"](context, group_of(context, "dola"), logits)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    for row, layers, relative_top in ((1, (7, 9, 11), 0.1), (3, (2, 4, 6), 0.5)):
        early = torch.stack([context.runtime.capture.states[LAYERS.index(layer), row] for layer in layers])[:, None]
        is_candidate = torch.ones(1, len(layers), dtype=torch.bool)
        expected, _ = dola_logits(before[[row]], early, is_candidate, torch.tensor([relative_top]), head())
        torch.testing.assert_close(logits[[row]], expected)


def test_confident_rewrites_its_rows_with_their_own_window() -> None:
    led = batch_of(request_row("confident", num_scanned_layers=3), request_row("led"), request_row("confident"))
    context, logits = context_of(led), logits_for(3)
    before = logits.clone()
    HANDLERS["confident"](context, group_of(context, "confident"), logits)
    assert torch.equal(logits[1], before[1])
    for row, num_layers in ((0, 3), (2, 10)):
        picked = [LAYERS.index(layer) for layer in range(11, 2, -1)]  # h^{L-1} downwards
        latents = context.runtime.capture.states[picked, row][:, None]
        expected, _ = confident_logits(before[[row]], latents, torch.tensor([num_layers]), head())
        torch.testing.assert_close(logits[[row]], expected)


def test_sled_rewrites_its_rows_with_their_own_step() -> None:
    settings = ((0, 2.0, 10), (2, 4.0, 3))
    led = batch_of(request_row("sled"), request_row("led"), request_row("sled", evolution_rate=4.0, evolution_scale=3))
    context, logits = context_of(led), logits_for(3)
    before = logits.clone()
    HANDLERS["sled"](context, group_of(context, "sled"), logits)
    assert torch.equal(logits[1], before[1])
    for row, rate, scale in settings:
        early = context.runtime.capture.states[[LAYERS.index(layer) for layer in range(1, 12)], row][:, None]
        expected, is_evolved = sled_logits(
            before[[row]], early, torch.tensor([rate]), torch.tensor([scale]), head(), 256
        )
        assert is_evolved.all()
        torch.testing.assert_close(logits[[row]], expected)


def test_a_width_is_the_largest_legal_value_of_the_table() -> None:
    assert largest_legal(CONFIG, "evolution_scale") == 256
    assert largest_legal(replace(CONFIG, max_depth=5), "depth") == 5
    with pytest.raises(TypeError, match="evolution_rate"):
        largest_legal(CONFIG, "evolution_rate")


def test_soft_forces_the_heaviest_token_of_thinking_rows() -> None:
    led = batch_of(request_row("led"), request_row("soft_thinking", soft_top_k=2), request_row("soft_thinking"))
    context, logits = context_of(led, thinking=[True, True, False]), logits_for(3)
    before = logits.clone()
    forced = soft(context, group_of(context, "soft_thinking"), logits)
    assert forced is not None
    rows, ids, is_forced = forced
    assert (rows.tolist(), is_forced.tolist()) == ([1, 2], [True, False])
    assert ids.tolist() == before[1:].argmax(-1).tolist()
    assert torch.equal(logits, before), "soft methods rewrite no logits"
    notes = context.runtime.soft.written  # by slot: ours are 2, 3, 4
    assert set(notes) == {3, 4}
    weights = before[1].softmax(-1).topk(2).values
    assert notes[3][1][:2] == pytest.approx((weights / weights.sum()).tolist())
    assert not any(notes[3][1][2:])
    assert (notes[3][2], notes[4][2]) == (True, False)


def test_soft_does_not_mix_after_the_close_marker() -> None:
    led = batch_of(request_row("soft_thinking"))
    context, logits = context_of(led), logits_for(1)
    logits[0, CLOSE_ID] = 50.0
    forced = soft(context, group_of(context, "soft_thinking"), logits)
    assert forced is not None and forced[1].tolist() == [CLOSE_ID] and forced[2].tolist() == [True]
    assert context.runtime.soft.written[2][2] is False


@pytest.mark.parametrize(("is_decode", "earlier", "stops"), [(True, 1, True), (True, 0, False), (False, 1, False)])
def test_cold_stop_counts_in_the_slot_and_anew_for_each_prompt(is_decode: bool, earlier: int, stops: bool) -> None:
    led = batch_of(request_row("soft_thinking", early_stop_length=2, early_stop_entropy=100.0))
    context, logits = context_of(led, is_decode), logits_for(1)
    context.runtime.soft.num_low_entropy[2] = earlier
    forced = soft(context, group_of(context, "soft_thinking"), logits)
    assert forced is not None
    assert (forced[1].item() == CLOSE_ID) == stops
    assert context.runtime.soft.num_low_entropy[2] == (earlier if is_decode else 0) + 1
    assert context.runtime.soft.written[2][2] is not stops


def test_gumbel_noise_is_the_rows_own() -> None:
    """Streams 2 and up of (seed, sample, position); the same beside other rows, bit for bit."""
    row = request_row("soft_thinking_gumbel", seed=9, soft_top_k=3)
    alone, together = (
        batch_of(row),
        batch_of(row, request_row("soft_thinking_gumbel", seed=4, soft_top_k=30), request_row("dola")),
    )
    noted = []
    for led in (alone, together):
        context, logits = context_of(led), logits_for(len(led.request_rows))
        soft(context, group_of(context, "soft_thinking_gumbel"), logits)
        noted.append(context.runtime.soft.written[2])
    assert noted[0] == noted[1]
    streams = uniforms(torch.tensor([9]), torch.tensor([0]), torch.tensor([30]), num_streams=5)[2:, 0]
    top = logits_for(1)[0].log_softmax(-1).topk(3)
    noisy = (top.values - (-streams.log()).log()) / 0.5
    order = noisy.argsort(descending=True)
    assert noted[0][0][:3] == top.indices[order].tolist()
    assert noted[0][1][:3] == pytest.approx(noisy[order].softmax(-1).tolist(), rel=1e-5)


@pytest.mark.parametrize("max_topk", [1, 3, 10])
def test_a_neighbours_wider_mixture_changes_no_bit(max_topk: int) -> None:
    noted = []
    for neighbours in ((), (32,), (2, 17)):
        request_rows = [request_row("soft_thinking", soft_top_k=k) for k in (max_topk, *neighbours)]
        context = context_of(batch_of(*request_rows))
        soft(context, group_of(context, "soft_thinking"), logits_for(len(request_rows)))
        noted.append(context.runtime.soft.written[2])
    assert noted[0] == noted[1] == noted[2]


def test_confident_draws_from_its_own_noise_and_selects_as_each_row_says() -> None:
    """Stream 2 of (seed, sample, position); half the rows keep the final layer at p = 0.5."""
    num_rows, methods = 8, ("trough-m1", "last-m2")
    rows = [
        request_row("confident", seed=i, select_method=methods[i % 2], selection_probability=0.5)
        for i in range(num_rows)
    ]
    context, logits = context_of(batch_of(*rows)), logits_for(num_rows)
    before = logits.clone()
    HANDLERS["confident"](context, group_of(context, "confident"), logits)
    picked = [LAYERS.index(layer) for layer in range(11, 2, -1)]
    keeps_final = uniforms(torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64), torch.arange(30, 38), 3)[2]
    assert 0 < (keeps_final >= 0.5).sum() < num_rows
    selection = torch.tensor([SELECT_METHODS.index(methods[i % 2]) for i in range(num_rows)])
    expected, chosen = confident_logits(
        before,
        context.runtime.capture.states[picked][:, :num_rows],
        torch.full((num_rows,), 10),
        head(),
        selection=selection,
        keeps_final=keeps_final >= 0.5,
    )
    torch.testing.assert_close(logits, expected)
    assert chosen[keeps_final < 0.5].any() and not chosen[keeps_final >= 0.5].any()


def test_filters_act_on_the_mixtures_of_rows_that_say_so() -> None:
    led = batch_of(request_row("soft_thinking", filters_first=True), request_row("soft_thinking"))
    context, logits = context_of(led), logits_for(2)
    context.info = SimpleNamespace(
        top_ks=torch.tensor([2, 2], dtype=torch.int32), top_ps=torch.ones(2), min_ps=torch.zeros(2)
    )
    soft(context, group_of(context, "soft_thinking"), logits)
    notes = context.runtime.soft.written
    assert [sum(weight > 0 for weight in notes[slot][1]) for slot in (2, 3)] == [2, 10]
