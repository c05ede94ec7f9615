"""DoLa against its float64 reference, by hand, on hostile rows, on a sharded head, and on faults it must show."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from led_sglang.ops import Head
from led_sglang.ops.methods import vocabulary
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.reference import jensen_shannon
from led_sglang.ops.methods.vocabulary import vocabulary_logits
from tests.unit.ops.cases.method_cases import Dola, assert_agree, random_dola
from tests.unit.ops.cases.op_cases import make_case
from tests.unit.ops.cases.ranks import Ranks, shards

INF, NAN = torch.inf, torch.nan


def by_hand(relative_top: float = 0.2, candidates: tuple[bool, ...] = (True, True)) -> Dola:
    final = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    early = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1]])[:, None].log()
    head = Head(torch.eye(4), num_rows=4, final_norm=lambda hidden: hidden / 2)
    return Dola(final, early, torch.tensor([candidates]), torch.tensor([relative_top]), head)


def test_by_hand():
    # The second layer disagrees more: m = (.3 .45 .175 .075), KL(p||m) = .090377, KL(q||m) = .118222.
    assert jensen_shannon([0.5, 0.3, 0.15, 0.05], [0.1, 0.6, 0.2, 0.1]) == pytest.approx(0.104300, abs=2e-6)
    # Tokens below .2 * .5 are dropped; the others get log(.5/.1), log(.3/.6), log(.15/.2).
    assert_agree(by_hand().run(), (torch.tensor([[1.609438, -0.693147, -0.287682, -INF]]), torch.tensor([1])))


def test_only_candidates_are_picked():
    expected = torch.tensor([[0.223144, 0.0, -0.287682, -INF]])  # log(.5/.4), log(.3/.3), log(.15/.2)
    assert_agree(by_hand(candidates=(True, False)).run(), (expected, torch.tensor([0])))


def test_relative_top_of_zero_and_one():
    assert by_hand(relative_top=0.0).run()[0].isfinite().all()
    assert by_hand(relative_top=1.0).run()[0].isfinite().tolist() == [[True, False, False, False]]


def test_equal_layers_tie_to_the_first():
    case = by_hand()
    assert replace(case, early=case.early[1:].expand(2, -1, -1)).run()[1].tolist() == [0]


@pytest.mark.parametrize("num_layers", [1, 2, 5])
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.5}, {"bias": torch.linspace(-1, 1, 97)}])
def test_agrees_with_the_reference(num_layers, head):
    case = random_dola(num_layers=num_layers, head=head)
    assert_agree(case.run(), case.reference())


def test_bfloat16_head_stays_within_its_rounding():
    case = random_dola(64, dtype=torch.bfloat16)
    (logits, chosen), (expected, expected_chosen) = case.run(), case.reference()
    same = chosen == expected_chosen
    assert same.float().mean() > 0.9
    torch.testing.assert_close(logits[same], expected[same], rtol=0, atol=0.15)  # logits of 9 are rounded to 1/16


def test_forbidden_tokens_stay_forbidden_and_do_not_decide():
    case = random_dola()
    final = case.final_logits.clone()
    final[:, ::2] = -INF
    final[3, 1:] = -INF  # one token left
    final[3, 0] = 1.0
    case = replace(case, final_logits=final)
    logits, chosen = case.run()
    assert (logits[final == -INF] == -INF).all()
    assert_agree((logits, chosen), case.reference())


def test_broken_rows_come_back_unchanged():
    case = random_dola(8)
    final, early, candidates = case.final_logits.clone(), case.early.clone(), torch.ones(8, 5, dtype=torch.bool)
    final[0, 3], final[1, 3], final[2] = NAN, INF, -INF
    early[2, 3, 0], early[4, 4, 0] = NAN, INF
    early[0, 5], candidates[5, 0] = NAN, False  # not a candidate: does not matter
    candidates[6] = False
    case = replace(case, final_logits=final, early=early, candidates=candidates)
    logits, chosen = case.run()
    assert (chosen >= 0).tolist() == [False] * 5 + [True, False, True]
    assert torch.equal(logits.nan_to_num(7.0)[chosen < 0], final.nan_to_num(7.0)[chosen < 0])
    assert_agree((logits, chosen), case.reference())


@pytest.mark.parametrize(("num_rows", "num_layers"), [(0, 3), (3, 0)])
def test_nothing_to_do(num_rows, num_layers):
    case = make_case(num_rows, layers=num_layers)
    candidates = torch.ones(num_rows, num_layers, dtype=torch.bool)
    logits, chosen = dola_logits(case.final_logits, case.latents, candidates, torch.full((num_rows,), 0.1), case.head)
    assert torch.equal(logits, case.final_logits) and chosen.tolist() == [-1] * num_rows


def test_columns_beyond_the_head_are_ignored():
    case = random_dola()
    wider = torch.cat([case.final_logits, torch.full((17, 3), 50.0)], -1)
    logits, chosen = replace(case, final_logits=wider).run()
    assert (logits[:, 97:] == -INF).all()
    assert_agree((logits[:, :97], chosen), case.run())


def test_many_layers_at_once_or_one_by_one(monkeypatch):
    case = random_dola()
    together = case.run()
    monkeypatch.setattr(vocabulary, "LAYER_ELEMENTS", 1)
    assert_agree(case.run(), together)


def test_rows_are_independent_and_inputs_untouched():
    case = random_dola()
    inputs = case.final_logits, case.early, case.candidates, case.relative_top
    before = [tensor.clone() for tensor in inputs]
    whole = case.run()
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
    for r in range(0, 17, 5):
        one = slice(r, r + 1)
        alone = dola_logits(
            case.final_logits[one], case.early[:, one], case.candidates[one], case.relative_top[one], case.head
        )
        assert_agree(alone, (whole[0][one], whole[1][one]))


def test_never_waits_for_the_device():
    """A meta tensor has no values: anything that asked for one would raise."""
    case = random_dola()
    head = replace(case.head, weight=case.head.weight.to("meta"))
    tensors = (t.to("meta") for t in (case.final_logits, case.early, case.candidates, case.relative_top))
    assert dola_logits(*tensors, head)[0].shape == case.final_logits.shape


MUTATIONS = {
    "layers in reverse order": lambda case: replace(case, early=case.early.flip(0)),
    "one layer off": lambda case: replace(case, early=case.early.roll(1, 0)),
    "final norm applied": lambda case: replace(case, early=case.head.final_norm(case.early)),
    "candidates ignored": lambda case: replace(case, candidates=torch.ones_like(case.candidates)),
    "rows mixed up": lambda case: replace(case, early=case.early.roll(1, 1)),
    "relative_top ignored": lambda case: replace(case, relative_top=torch.zeros_like(case.relative_top)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_seen(name):
    case = random_dola(32)
    truth, wrong = case.reference()[0], MUTATIONS[name](case).run()[0]
    off = (wrong.nan_to_num(neginf=-99) - truth.nan_to_num(neginf=-99)).abs().amax(-1) > 1e-2
    assert off.float().mean() > 0.15, "the inputs hide this fault"


SPLITS = pytest.mark.parametrize("bounds", [[0, 50, 97], [0, 40, 80, 97], [0, 97, 97]])


@SPLITS
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "bias": torch.linspace(-1, 1, 97)}])
def test_sharded_head_equals_the_whole_one(bounds, head):
    case = random_dola(9, head=head)
    ranks = Ranks(len(bounds) - 1)
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        results = list(pool.map(lambda part: replace(case, head=part).run(), shards(case.head, bounds, 100, ranks)))
    assert ranks.num_calls == 2
    for result in results:
        assert torch.equal(result[0], results[0][0]) and torch.equal(result[1], results[0][1])
        assert_agree(result, case.run())


@SPLITS
def test_gathered_logits_are_in_vocabulary_order(bounds):
    case = random_dola(4)
    ranks = Ranks(len(bounds) - 1)
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        parts = shards(case.head, bounds, 97, ranks)
        results = list(pool.map(lambda part: vocabulary_logits(case.early[0], part, 97), parts))
    for logits in results:
        torch.testing.assert_close(logits, case.early[0] @ case.head.weight.T, rtol=1e-5, atol=1e-5)
