"""Penalties and bias in every layer: each backend against the reference, what a ban is, and which way numbers move."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from led_sglang.ops import Head, LedStep, LogitEdits, StepInputs, backend_for, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.ops.cases.edit_cases import KINDS, by_hand, edited_case, with_edits
from tests.unit.ops.cases.op_cases import CPU, CPU_BACKENDS, FIXED_SHAPES, MIXED, Case, make_case, others
from tests.unit.ops.cases.oracle import check
from tests.unit.ops.cases.ranks import Ranks, run_ranks, shard

SERVED = pytest.mark.parametrize("backend", ["torch", "numba"])


def test_by_hand():
    """One latent layer of logits log (4, 2, 1, 1), of which the first token is banned, then doubled."""
    logits = torch.tensor([4.0, 2.0, 1.0, 1.0]).log()[None]
    case = make_case(1, 4, hidden=4, depth=2, top_k=4, explore=True, temperature=1.0)
    final = torch.zeros(1, 4)

    def latent(bias: float) -> Tensor:
        edits = LogitEdits(None, None, torch.tensor([[bias, 0.0, 0.0, 0.0]]))
        own = replace(case, final_logits=final, latents=logits[None], head=Head(torch.eye(4), 4), edits=edits)
        probs = own.with_rows(normalize_layers=torch.tensor([False])).run("reference")
        assert probs.depth.tolist() in ([1], [2])
        return led_layer(own)

    torch.testing.assert_close(latent(-1e4), torch.tensor([0.0, 0.25, 0.125, 0.125]))  # nobody gains
    torch.testing.assert_close(latent(torch.tensor(2.0).log().item()), torch.tensor([8.0, 2.0, 1.0, 1.0]) / 12)
    torch.testing.assert_close(latent(0.0), torch.tensor([0.5, 0.25, 0.125, 0.125]))


def led_layer(case: Case) -> Tensor:
    """(V,) p^{L-1} of the only row, from the aggregate of two layers at depth 2."""
    from led_sglang.ops.backends.lm_head import latent_probs

    assert case.edits is not None
    ids, tau = torch.arange(4)[None], torch.ones(1, 1)
    return latent_probs(case.latents, ids, case.head, tau, None, case.edits)[0, 0]


@others
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [97, 16411])  # one tile, and several
def test_every_backend_agrees_with_the_reference(backend, kind, vocab):
    num_rows, hidden = (17, 64) if vocab == 97 else (4, 192)
    check(edited_case(kind, num_rows, vocab, hidden=hidden, trace=True), backend)
    check(edited_case(kind, num_rows, vocab, hidden=hidden, explore=True, seed=1), backend)


SHAPES = {
    "one depth": {"depth": 1},
    "one candidate": {"top_k": 1},
    "more candidates than tokens": {"vocab": 5},
    "offset": {"latent_offset": 1},
    "norm": {"latent_norm": True},
    "greedy": {"greedy": True},
    "normalized layers": {"normalize_layers": True},
    "no exploitation": {"exploit": False},
    "bfloat16": {"dtype": torch.bfloat16, "num_rows": 40, "seed": 1},
    "no row": {"num_rows": 0},
}
HEADS = {
    "capped": {"scale": 1.5, "softcap": 8.0},
    "biased": {"bias": torch.linspace(-3, 3, 97)},
    "engine's product": {"project": None},
    "padded": {"num_rows": 90},
}


@others
@pytest.mark.parametrize("name", [*SHAPES, *HEADS])
def test_shapes_and_heads(backend, name, monkeypatch):
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.TILE_ELEMENTS", 3 * 97)  # the engine's: few rows at a time
    case = edited_case("all", **{"explore": True} | SHAPES.get(name, {}))
    if name == "engine's product":
        weight = case.head.weight
        case = case.with_head(project=lambda hidden: hidden @ weight.T)
    elif name == "padded":
        case = replace(case, final_logits=case.final_logits[:, :90]).with_head(num_rows=90)
    elif name in HEADS:
        case = case.with_head(**HEADS[name])
    check(case, backend)


@SERVED
def test_some_rows_at_a_time(backend, monkeypatch):
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.CANDIDATE_ELEMENTS", 8 * 192 * 3)
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.TILE_ELEMENTS", 1)
    check(edited_case("all", 11, 1300, hidden=192, trace=True), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_shapes(kind):
    """The path of a GPU."""
    check(edited_case(kind, 17, trace=True), FIXED_SHAPES)


@others
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.5}])
@pytest.mark.parametrize("kind", ["ban", "all"])
def test_two_ranks_equal_the_whole_head(backend, head, kind):
    """Each rank edits its own part of the vocabulary; still one collective."""
    for vocab in (97, 16411):
        case = edited_case(kind, 5, vocab, hidden=64 if vocab == 97 else 192, trace=True).with_head(**head)
        steps, num_calls = run_ranks(case, backend, [0, vocab // 2 + 1, vocab])
        whole = case.run(backend)
        assert num_calls == 1
        for field in fields(LedStep):
            first, second, expected = (getattr(step, field.name) for step in (*steps, whole))
            assert torch.equal(first, second), f"ranks disagree about {field.name}"
            torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)


# -- what a ban and a penalty are ------------------------------------------------------------------------------------


def led_probs(step: LedStep, case: Case) -> Tensor:
    """(R, V): p_LED of every token, the coin summed out."""
    share = (step.confidence * case.rows.exploit)[:, None]
    probs = share * step.exploit_probs + (1 - share) * step.explore_probs
    return torch.zeros(case.final_logits.shape).scatter_add(1, step.candidate_ids, probs)


def biased(case: Case, token_ids: Tensor, bias: float, **tables: Tensor) -> Case:
    """One token of each row, (R,)."""
    table = torch.zeros_like(case.final_logits).scatter(1, token_ids[:, None], bias)
    edits = LogitEdits(tables.get("additive"), tables.get("scaling"), table)
    return replace(case, final_logits=by_hand(case.final_logits, edits), edits=edits)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("changes", [{}, {"exploit": False}, {"greedy": True}, {"latent_offset": 1}, {"vocab": 4}])
def test_a_banned_candidate_has_no_probability(backend, changes):
    """Also in layers that are certain of it: their logits are of any size."""
    case = make_case(**{"trace": True, "temperature": 1.0} | changes)
    favourite = case.final_logits.argmax(-1)
    latents = case.latents + 40 * case.head.weight[favourite]
    assert (latents @ case.head.weight.T).amax(-1).min() > 25
    for bias in (-100.0, -1e4):
        banned = replace(biased(case, favourite, bias), latents=latents)
        step = banned.run(backend)
        assert step.ok.all()
        assert (led_probs(step, banned).gather(1, favourite[:, None]) < 1e-30).all()
        assert (step.token_ids != favourite).all()


@others
def test_a_ban_leaves_what_a_grammar_leaves(backend):
    """Forbidden by -inf in the final layer alone, or by a bias in all: the same probabilities for the other tokens."""
    case = make_case(17, trace=True)
    second = case.final_logits.topk(2).indices[:, 1]
    banned = biased(case, second, -1e4)
    masked = replace(case, final_logits=case.final_logits.scatter(1, second[:, None], -torch.inf))
    found, expected = led_probs(banned.run(backend), banned), led_probs(masked.run(backend), masked)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@others
def test_a_lower_logit_is_less_likely_and_a_higher_one_more(backend):
    """At every depth alone; between depths the arg-max of the entropies may jump."""
    case = make_case(40, trace=True, depth=6)
    for place in range(6):
        tokens = case.final_logits.topk(6).indices[:, place]
        shares = []
        for bias in (-20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0):
            own = biased(case, tokens, bias)
            step = own.run(backend)
            reported = (led_probs(replace(step, explore_probs=step.exploit_probs), own), led_probs(step, own))
            shares.append([step.depth, *(probs.gather(1, tokens[:, None])[:, 0] for probs in reported)])
        for (depth, exploit, led), (next_depth, next_exploit, next_led) in pairwise(shares):
            assert (exploit < next_exploit + 1e-7).all()
            same = depth == next_depth
            assert same.any() and (led < next_led + 1e-6)[same].float().mean() > 0.97
        assert (shares[0][2] < 1e-6).all() and (shares[-1][2] > 0.99).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("scaling", [1.5, 0.7])
def test_repetition_penalty_acts_on_each_layers_own_logits(backend, scaling):
    """The explore branch of depth 2, from both layers' logits by hand; some of them are negative."""
    case = make_case(12, 40, depth=2, top_k=40, exploit=False, temperature=1.0, trace=True)
    table = torch.ones_like(case.final_logits).index_fill(1, torch.arange(0, 40, 3), scaling)
    edits = LogitEdits(None, table, None)
    own = replace(case, final_logits=by_hand(case.final_logits, edits), edits=edits)
    plain = case.latents[0] @ case.head.weight.T
    assert (plain < 0).any() and (plain > 0).any()
    edited = by_hand(plain, edits)
    total = torch.maximum(plain.logsumexp(-1), edited.logsumexp(-1))
    both = own.final_logits.softmax(-1) + (edited - total[:, None]).exp()
    expected = both / both.sum(-1, keepdim=True)
    step = own.run(backend)
    found = torch.zeros_like(expected).scatter_add(1, step.candidate_ids, step.explore_probs)
    deep = step.depth == 2
    assert deep.any()
    torch.testing.assert_close(found[deep], expected[deep], rtol=1e-5, atol=1e-6)


# -- rows without edits ----------------------------------------------------------------------------------------------


@SERVED
@pytest.mark.parametrize("vocab", [97, 16411])
def test_a_neighbours_edits_change_no_bit(backend, vocab):
    case = make_case(9, vocab, hidden=64 if vocab == 97 else 192, trace=True)
    is_edited = torch.arange(9) % 3 == 1
    mixed, plain = with_edits(case, "all", is_edited).run(backend), case.run(backend)
    for field in fields(LedStep):
        a, b = getattr(mixed, field.name)[~is_edited], getattr(plain, field.name)[~is_edited]
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(mixed.explore_probs[is_edited], plain.explore_probs[is_edited])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_tables_are_not_modified(backend):
    case = edited_case("all", explore=True)
    assert case.edits is not None
    before = [table.clone() for table in (case.edits.additive, case.edits.scaling, case.edits.bias)]
    case.run(backend)
    after = (case.edits.additive, case.edits.scaling, case.edits.bias)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("allows_dynamic_shapes", [True, False])
@pytest.mark.parametrize("all_edited", [True, False])
def test_what_is_known_is_not_used_by_rows_with_edits(allows_dynamic_shapes, all_edited):
    """The one-pass form knows nothing of penalties; it goes on serving the other rows."""
    backend = TorchBackend(allows_dynamic_shapes)
    case = make_case(20, layers=4, **MIXED)
    case = with_edits(case, "all", None if all_edited else torch.arange(20) % 2 == 0)
    mask, tau = one_pass.one_pass_mask(case.rows, case.inputs, 1.0), case.rows.tau
    lse = torch.full((3, 20), torch.nan)
    backend.head_pass(case.latents[0], case.latents[:3], case.head, tau, mask, lse)
    known_lse = one_pass.known_lse_of(case.rows, lse, mask, 1.0)
    arguments = (case.final_logits, case.latents, case.head, case.rows, case.inputs)
    step = led_step(*arguments, backend=backend, known_lse=known_lse, edits=case.edits)
    expected = case.run(backend)
    for field in fields(LedStep):
        a, b = getattr(step, field.name), getattr(expected, field.name)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_is_known_beside_edits_meets_in_the_one_collective():
    case = with_edits(make_case(6, explore=True), "all", torch.arange(6) % 2 == 0)
    ranks, mask, tau = Ranks(2), torch.arange(6) != 3, case.rows.tau

    def run(rank: int) -> LedStep:
        part = shard(case, *([0, 50], [50, 97])[rank], 5, ranks, rank)
        lse = torch.empty(3, 6)
        backend_for("torch", CPU).head_pass(part.latents[0], part.latents, part.head, tau, mask, lse)
        known_lse = one_pass.known_lse_of(part.rows, lse, mask, one_pass.COIN_THRESHOLD)
        arguments = (part.final_logits, part.latents, part.head, part.rows, part.inputs)
        return led_step(*arguments, known_lse=known_lse, edits=part.edits)

    with ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(run, range(2)))
    truth = case.run("reference")
    assert ranks.num_calls == 1
    for step in steps:
        torch.testing.assert_close(step.explore_probs, truth.explore_probs, rtol=1e-4, atol=1e-5)


def test_edits_that_break_a_row_give_it_to_the_engine():
    """A bias of +inf or NaN, or a penalty that overflows, is no number: as in the final layer."""
    case = make_case(4, explore=True)
    bias = torch.zeros_like(case.final_logits)
    bias[1, 3], bias[2, 5] = torch.inf, torch.nan
    edits = LogitEdits(None, None, bias)
    for backend in CPU_BACKENDS:
        step = replace(case, final_logits=by_hand(case.final_logits, edits), edits=edits).run(backend)
        assert step.ok.tolist() == [True, False, False, True]


def test_inputs_are_not_touched():
    case = edited_case("all", explore=True)
    assert isinstance(case.inputs, StepInputs)
    assert torch.equal(case.run("torch").explored, replace(case, edits=None).run("torch").explored)
