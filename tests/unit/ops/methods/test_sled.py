"""SLED against its float64 reference, by hand, on sure and hostile rows, on a sharded head, and on faults."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from led_sglang.integration.memory import LOGIT_COPIES
from led_sglang.ops import Head
from led_sglang.ops.methods import vocabulary
from led_sglang.ops.methods.sled import largest_ids, sled_logits
from tests.unit.ops.cases.method_cases import MAX_SCALE, Sled, assert_agree, random_sled
from tests.unit.ops.cases.op_cases import make_case, rms_norm
from tests.unit.ops.cases.ranks import Ranks, shards
from tests.unit.ops.cases.watch import Watch

INF, NAN = torch.inf, torch.nan
FINAL = [2.0, 1.0, -1.0, -2.0]  # p = .696387, .256187, .034671, .012755
FLAT = [0.0] * 4  # cosines 2, 1, -1, -2 / sqrt(7.5)
OTHER = [
    2.0,
    0.0,
    -1.0,
    -1.0,
]  # q = .809776, .109591, .040316, .040316; cosine of token 1: .546199, the only one above 0
SURE, SURER = [0.0, 0.0, 0.0, 1.609438], [-1.0, -1.0, -1.0, 2.609438]  # q = 1/8 and 5/8; p = .025034 and .924900


def four_tokens(final: list[float], *layers: list[float], scale: int = 4, rate: float = 2.0) -> Sled:
    """Head: the identity; a final norm that would double the streams."""
    head = Head(torch.eye(4), num_rows=4, final_norm=lambda hidden: 2 * hidden)
    early = torch.tensor(layers).view(-1, 1, 4)
    return Sled(torch.tensor([final]), early, torch.tensor([rate]), torch.tensor([scale]), head)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (four_tokens(FINAL, FLAT), [2.207226, 0.887626, -1.069342, -2.025510]),  # t = .8, .2
        (four_tokens(FINAL, FLAT, scale=2), [2.207226, 0.887626, -INF, -INF]),
        (four_tokens(FINAL, FLAT, scale=1), [2.607226, -INF, -INF, -INF]),  # t = 1
        (four_tokens(FINAL, FLAT, scale=2, rate=0.0), [2.0, 1.0, -INF, -INF]),
        (four_tokens(FINAL, OTHER), [0.607226, 2.487626, -1.069342, -2.025510]),  # t = 0, 1
        # m = (.533333, .133333 + .298333): t = .552677, .447323
        (four_tokens(FINAL, FLAT, OTHER), [1.712580, 1.382272, -1.069342, -2.025510]),
        (four_tokens(FINAL, OTHER, FINAL, FLAT), [1.712580, 1.382272, -1.069342, -2.025510]),  # one without a change
        (four_tokens(SURER, SURE), [-1.050068, -1.050068, -1.050068, 2.759638]),  # the layer's own token: t = 1
        (four_tokens([1.0, 1.0, 1.0, 0.0], FLAT, scale=2, rate=0.0), [1.0, 1.0, -INF, -INF]),  # ties: the smaller ids
    ],
)
def test_by_hand(case, expected):
    result = torch.tensor([expected]), torch.tensor([True])
    assert_agree(case.run(), result)
    assert_agree(case.reference(), result)


@pytest.mark.parametrize(
    "case",
    [
        four_tokens(FINAL, FINAL),  # no change, no direction
        four_tokens(FINAL, OTHER, scale=1),  # away from the only candidate
        four_tokens([1.0, -INF, -INF, -INF], FLAT),  # one token left
    ],
)
def test_rows_without_evidence_keep_their_logits(case):
    for logits, is_evolved in (case.run(), case.reference()):
        assert torch.equal(logits, case.final_logits) and not is_evolved.any()


@pytest.mark.parametrize("num_layers", [1, 2, 6])
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.5}, {"bias": torch.linspace(-1, 1, 97)}])
def test_agrees_with_the_reference(num_layers, head):
    case = random_sled(num_layers=num_layers, head=head)
    assert_agree(case.run(), case.reference())


@pytest.mark.parametrize("scale", [12.0, 40.0])
def test_layers_that_are_sure(scale):
    """1 - q is below float32's epsilon, and below its smallest number: the direction is still known."""
    case = random_sled()
    case = replace(case, early=case.early * scale)
    tops = case.head.weight.matmul(case.early[..., None])[..., 0].softmax(-1).amax(-1)
    assert (tops == 1).float().mean() > 0.3
    assert_agree(case.run(), case.reference())


def test_bfloat16_head_stays_within_its_rounding():
    case = random_sled(64, dtype=torch.bfloat16)
    (logits, is_evolved), (expected, expected_evolved) = case.run(), case.reference()
    assert is_evolved.all() and expected_evolved.all()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.15)


def test_forbidden_tokens_are_no_candidates_and_give_no_direction():
    case = random_sled()
    final = case.final_logits.clone()
    final[:, ::2] = -INF
    final[3, 1:], final[3, 0] = -INF, 1.0  # one token left
    case = replace(case, final_logits=final)
    logits, is_evolved = case.run()
    assert (logits[final == -INF] == -INF).all() and is_evolved.tolist() == [r != 3 for r in range(17)]
    assert_agree((logits, is_evolved), case.reference())
    other = replace(case.head, weight=torch.where(torch.arange(97)[:, None] % 2 == 0, 5.0, case.head.weight))
    assert_agree(replace(case, head=other).run(), (logits, is_evolved))


def test_broken_rows_come_back_unchanged():
    case = random_sled(8)
    final, early = case.final_logits.clone(), case.early.clone()
    final[0, 3], final[1, 3], final[2] = NAN, INF, -INF
    early[2, 3, 0], early[4, 4, 0], early[0, 5] = NAN, INF, NAN
    case = replace(case, final_logits=final, early=early)
    logits, is_evolved = case.run()
    assert is_evolved.tolist() == [False] * 6 + [True] * 2
    assert torch.equal(logits[:6].nan_to_num(7.0), final[:6].nan_to_num(7.0))
    assert_agree((logits, is_evolved), case.reference())


@pytest.mark.parametrize(("num_rows", "num_layers"), [(0, 3), (3, 0)])
def test_nothing_to_do(num_rows, num_layers):
    case = make_case(num_rows, layers=num_layers)
    rate, scale = torch.full((num_rows,), 2.0), torch.full((num_rows,), 10)
    logits, is_evolved = sled_logits(case.final_logits, case.latents, rate, scale, case.head, MAX_SCALE)
    assert torch.equal(logits, case.final_logits) and is_evolved.tolist() == [False] * num_rows


def test_columns_beyond_the_head_are_ignored():
    case = random_sled()
    wider = torch.cat([case.final_logits, torch.full((17, 3), 50.0)], -1)
    logits, is_evolved = replace(case, final_logits=wider).run()
    assert (logits[:, 97:] == -INF).all()
    assert_agree((logits[:, :97], is_evolved), case.run())


def test_more_candidates_than_tokens():
    case = random_sled(vocab=7)
    case = replace(case, scale=torch.full((17,), MAX_SCALE))
    logits, _ = case.run()
    assert logits.isfinite().all()
    assert_agree(case.run(), case.reference())


def test_the_largest_and_of_equals_the_smaller_id():
    logits = torch.randint(-3, 4, (50, 31), generator=torch.Generator().manual_seed(0)).float()
    logits[logits == -3] = -INF
    logits[::2] = -logits[::2].where(logits[::2] == 0, -logits[::2])  # zeros of both signs
    assert logits.signbit().logical_and(logits == 0).any()
    expected = [sorted(range(31), key=lambda i: -row[i])[:9] for row in logits.tolist()]
    assert largest_ids(logits, 9).tolist() == expected
    assert largest_ids(logits, 99).shape == (50, 31)


def test_many_layers_at_once_or_one_by_one(monkeypatch):
    case = random_sled()
    together = case.run()
    monkeypatch.setattr(vocabulary, "LAYER_ELEMENTS", 1)
    alone = case.run()
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])


def test_a_large_batch_holds_as_many_logits_as_announced(monkeypatch):
    """One layer at a time, and no (candidates, V) or (layers, V) for each row."""
    vocab, num_rows = 8192, 3
    case = random_sled(num_rows, num_layers=9, vocab=vocab)
    monkeypatch.setattr(vocabulary, "LAYER_ELEMENTS", 1)
    with Watch() as watch:
        case.run()
    assert watch.peak_bytes < LOGIT_COPIES * 4 * num_rows * vocab


def test_rows_are_independent_and_inputs_untouched():
    case = random_sled()
    inputs = case.final_logits, case.early, case.rate, case.scale
    before = [tensor.clone() for tensor in inputs]
    whole = case.run()
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
    for r in range(0, 17, 5):
        one = slice(r, r + 1)
        alone = Sled(case.final_logits[one], case.early[:, one], case.rate[one], case.scale[one], case.head).run()
        assert_agree(alone, (whole[0][one], whole[1][one]))


def test_never_waits_for_the_device():
    case = random_sled()
    head = replace(case.head, weight=case.head.weight.to("meta"))
    tensors = (t.to("meta") for t in (case.final_logits, case.early, case.rate, case.scale))
    assert sled_logits(*tensors, head, MAX_SCALE)[0].shape == case.final_logits.shape


MUTATIONS = {
    "one layer too early": lambda case: replace(case, early=torch.cat([case.early[-1:] * 0.3, case.early[:-1]])),
    "the last layer missing": lambda case: replace(case, early=case.early[:-1]),
    "final norm applied": lambda case: replace(case, early=rms_norm(case.early)),
    "away from the layers": lambda case: replace(case, rate=-case.rate),
    "one candidate too few": lambda case: replace(case, scale=case.scale - 1),
    "the largest number of candidates": lambda case: replace(case, scale=torch.full_like(case.scale, MAX_SCALE)),
    "rows mixed up": lambda case: replace(case, early=case.early.roll(1, 1)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_noticed(name):
    case = random_sled(40)
    truth, wrong = case.reference()[0], MUTATIONS[name](case).run()[0]
    off = ~torch.isclose(wrong, truth, rtol=0, atol=1e-2).all(-1)
    assert off.float().mean() > 0.1, "the inputs hide this fault"


def test_sharded_head_equals_the_whole_one():
    case = random_sled(9)
    ranks = Ranks(2)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda part: replace(case, head=part).run(), shards(case.head, [0, 60, 97], 60, ranks)))
    assert ranks.num_calls == 1
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_agree(results[0], case.run())
