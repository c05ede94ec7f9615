"""Confident Decoding against its float64 reference, by hand, on hostile rows, on a sharded head, and on faults."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from led_sglang.config.fields import SELECT_METHODS
from led_sglang.ops import Head
from led_sglang.ops.methods import vocabulary
from led_sglang.ops.methods.confident import confident_logits
from tests.unit.ops.cases.method_cases import Confident, assert_agree, random_confident
from tests.unit.ops.cases.op_cases import make_case
from tests.unit.ops.cases.ranks import Ranks, shards

INF, NAN = torch.inf, torch.nan
SOFT, SHARP, FLAT = [0.4, 0.3, 0.2, 0.1], [0.05, 0.7, 0.2, 0.05], [0.25] * 4  # entropies 1.279854, .871133, 1.386294


def four_tokens(*layers: list[float], num_layers: int | None = None) -> Confident:
    """Final layer first. Head: the identity; final norm: halves, so latents are twice the log-probabilities."""
    final, latents = torch.tensor([layers[0]]).log(), 2 * torch.tensor(layers[1:]).view(-1, 1, 4).log()
    head = Head(torch.eye(4), num_rows=4, final_norm=lambda hidden: hidden / 2)
    return Confident(final, latents, torch.tensor([num_layers or len(layers)]), head)


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ([SOFT, SHARP, FLAT], 1),  # falls, then rises
        ([SHARP, SOFT, FLAT], 0),  # rises at once
        ([SHARP, FLAT, SHARP, FLAT], 0),  # the first valley, not the deepest
        ([FLAT, SOFT, SHARP, FLAT], 2),
        ([FLAT, SOFT, SHARP], 2),  # falls to the end of the window: its shallowest layer
        ([SOFT, SOFT, FLAT], 0),  # a tie stops the scan
        ([SOFT, SOFT, SHARP, FLAT], 0),
        ([FLAT, SOFT, SOFT, SHARP], 1),
        ([SOFT, SOFT], 0),
        ([SOFT, FLAT], 0),
        ([FLAT, SOFT], 1),
    ],
)
def test_by_hand(layers, chosen):
    case = four_tokens(*layers)
    expected = torch.tensor([layers[chosen]]).log()
    assert_agree(case.run(), (expected, torch.tensor([chosen])))
    assert_agree(case.reference(), (expected, torch.tensor([chosen])))


def test_the_window_ends_the_scan():
    assert four_tokens(FLAT, SOFT, SHARP, FLAT, num_layers=4).run()[1].tolist() == [2]
    assert four_tokens(FLAT, SOFT, SHARP, FLAT, num_layers=3).run()[1].tolist() == [2]
    assert four_tokens(FLAT, SOFT, SHARP, FLAT, num_layers=2).run()[1].tolist() == [1]


VALLEY_AT_TWO = [FLAT, SOFT, SHARP, FLAT, SHARP, FLAT, SOFT, SHARP, SOFT, FLAT]
SELECTED = {
    "trough": 2, "trough-m1": 3, "trough-m2": 4, "trough-p1": 1, "trough-p2": 0,
    "last-m1": 1, "last-m2": 2, "last-m4": 4, "last-m8": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", SELECT_METHODS)
def test_every_way_to_select(name):
    """By hand; in a smaller window the layer is kept inside it."""
    case = replace(four_tokens(*VALLEY_AT_TWO), select_methods=(name,))
    for num_layers in (10, 4, 3, 2):
        clipped, last = replace(case, num_layers=torch.tensor([num_layers])), num_layers - 1
        shift = SELECTED[name] - 2 if name.startswith("trough") else None
        chosen = min(SELECTED[name], last) if shift is None else min(max(min(2, last) + shift, 0), last)
        expected = torch.tensor([VALLEY_AT_TWO[chosen]]).log(), torch.tensor([chosen])
        assert_agree(clipped.run(), expected)
        assert_agree(clipped.reference(), expected)
    assert set(SELECTED) == set(SELECT_METHODS)


def test_rows_select_each_in_its_own_way():
    names = tuple(SELECT_METHODS[r % len(SELECT_METHODS)] for r in range(36))
    keeps_final = torch.arange(36) % 5 == 0
    case = replace(random_confident(36, num_layers=10), select_methods=names, keeps_final=keeps_final)
    logits, chosen = case.run()
    assert_agree((logits, chosen), case.reference())
    assert not chosen[keeps_final].any() and torch.equal(logits[keeps_final], case.final_logits[keeps_final])
    assert len(chosen.unique()) > 4


@pytest.mark.parametrize("num_layers", [2, 3, 6])
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.5}, {"bias": torch.linspace(-1, 1, 97)}])
def test_agrees_with_the_reference(num_layers, head):
    case = random_confident(num_layers=num_layers, head=head)
    assert_agree(case.run(), case.reference())


def test_bfloat16_head_stays_within_its_rounding():
    case = random_confident(64, dtype=torch.bfloat16)
    (logits, chosen), (expected, expected_chosen) = case.run(), case.reference()
    same = chosen == expected_chosen
    assert same.float().mean() > 0.9 and chosen.unique().numel() > 2
    torch.testing.assert_close(logits[same], expected[same], rtol=0, atol=0.15)


def test_final_layer_is_returned_exactly():
    case = random_confident(64)
    logits, chosen = case.run()
    assert 0 < (chosen == 0).sum() < 64
    assert torch.equal(logits[chosen == 0], case.final_logits[chosen == 0])


def test_forbidden_tokens_stay_forbidden_in_every_layer():
    case = random_confident(32)
    final = case.final_logits.clone()
    final[:, ::2] = -INF
    final[3, 1:], final[3, 0] = -INF, 1.0  # one token left: every entropy is 0
    case = replace(case, final_logits=final)
    logits, chosen = case.run()
    assert chosen.any() and chosen[3] == 0
    assert torch.equal(logits == -INF, final == -INF)
    assert_agree((logits, chosen), case.reference())


def test_broken_rows_come_back_unchanged():
    case = random_confident(8)
    final, latents, num_layers = case.final_logits.clone(), case.latents.clone(), torch.full((8,), 4)
    final[0, 3], final[1, 3], final[2] = NAN, INF, -INF
    latents[0, 3, 0], latents[2, 4, 0] = NAN, INF
    latents[3, 5] = NAN  # beyond the window: does not matter
    case = replace(case, final_logits=final, latents=latents, num_layers=num_layers)
    logits, chosen = case.run()
    assert chosen[:5].tolist() == [0] * 5
    assert torch.equal(logits[:5].nan_to_num(7.0), final[:5].nan_to_num(7.0))
    assert_agree((logits, chosen), case.reference())


@pytest.mark.parametrize(("num_rows", "num_latents"), [(0, 3), (3, 0)])
def test_nothing_to_do(num_rows, num_latents):
    case = make_case(num_rows, layers=num_latents)
    logits, chosen = confident_logits(case.final_logits, case.latents, torch.full((num_rows,), 2), case.head)
    assert torch.equal(logits, case.final_logits) and chosen.tolist() == [0] * num_rows


def test_window_of_one_layer_and_beyond_what_was_captured():
    case = random_confident()
    logits, chosen = replace(case, num_layers=torch.ones(17, dtype=torch.int64)).run()
    assert torch.equal(logits, case.final_logits) and not chosen.any()
    wide = replace(case, num_layers=torch.full((17,), 99))
    assert_agree(wide.run(), wide.reference())


def test_many_layers_at_once_or_one_by_one(monkeypatch):
    case = random_confident()
    together = case.run()
    monkeypatch.setattr(vocabulary, "LAYER_ELEMENTS", 1)
    assert_agree(case.run(), together)


def test_inputs_untouched():
    case = random_confident()
    inputs = case.final_logits, case.latents, case.num_layers
    before = [tensor.clone() for tensor in inputs]
    case.run()
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


def test_never_waits_for_the_device():
    case = random_confident()
    head = replace(case.head, weight=case.head.weight.to("meta"))
    tensors = (t.to("meta") for t in (case.final_logits, case.latents, case.num_layers))
    selection, keeps_final = torch.zeros(17, dtype=torch.int64), torch.zeros(17, dtype=torch.bool)
    chosen = {"selection": selection.to("meta"), "keeps_final": keeps_final.to("meta")}
    assert confident_logits(*tensors, head, **chosen)[0].shape == case.final_logits.shape


MUTATIONS = {
    "layers in reverse order": lambda case: replace(case, latents=case.latents.flip(0)),
    "one layer too early": lambda case: replace(case, latents=case.latents.roll(-1, 0)),
    "final norm missing": lambda case: replace(case, head=replace(case.head, final_norm=None)),
    "one layer too few": lambda case: replace(case, num_layers=case.num_layers - 1),
    "rows mixed up": lambda case: replace(case, latents=case.latents.roll(1, 1)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_seen(name):
    case = random_confident(64)
    truth, wrong = case.reference()[0], MUTATIONS[name](case).run()[0]
    off = (wrong - truth).abs().amax(-1) > 1e-2
    assert off.float().mean() > 0.1, "the inputs hide this fault"


def test_sharded_head_equals_the_whole_one():
    case = random_confident(9)
    ranks = Ranks(2)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda part: replace(case, head=part).run(), shards(case.head, [0, 60, 97], 60, ranks)))
    assert ranks.num_calls == 2
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_agree(results[0], case.run())
