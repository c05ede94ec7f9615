"""The seeded draw outside the phase: what its filters leave, which token a uniform picks, and in whose company."""

from dataclasses import replace

import pytest
import torch

from led_sglang.ops.rows import filtered_draw
from led_sglang.ops.rows.filtered_draw import Filters, Support, kept_tokens
from tests.unit.ops.cases.draw_cases import Draw, every_filter, skipping, sorted_policy, token_at

BACKENDS = ["numba", "torch"]  # "triton": kernels/filtered_draw_checks.py
backends = pytest.mark.parametrize("backend", BACKENDS)


def wanted_of(draw: Draw, s: int) -> tuple[int, float, float]:
    row = draw.rows[s]
    filters = draw.filters
    return int(filters.top_k[row]), float(filters.top_p[row]), float(filters.min_p[row])


@backends
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("vocab", [5, 97, 1300])
def test_the_filters_leave_what_they_leave_of_a_sorted_vocabulary(backend, has_ties, vocab):
    draw = every_filter(vocab, seed=vocab, has_ties=has_ties)
    tokens, coin_threshold = draw.run(backend)
    for s, policy in enumerate(draw.policies(coin_threshold)):
        expected = sorted_policy(draw.probs[draw.rows[s]], *wanted_of(draw, s))
        assert policy == expected, wanted_of(draw, s)
        assert tokens[s] == token_at(expected, float(draw.uniform[s]))


@backends
def test_each_token_owns_its_share_of_the_uniforms(backend):
    """The exact distribution: a token's interval of uniforms begins where the one before it ends."""
    draw = every_filter(40, seed=3).take([5, 11, 29, 63, 70])

    def column(uniform: float) -> torch.Tensor:
        return torch.full((5,), uniform, dtype=torch.float64)

    _, coin_threshold = draw.run(backend)
    for s, policy in enumerate(draw.policies(coin_threshold)):
        total, cumulated, last = sum(policy.values()), 0.0, -1
        for v in sorted(policy):
            edge = cumulated / total
            ends = replace(draw, uniform=column(min(edge + 1e-12, 1 - 2**-53)))
            assert ends.run(backend)[0][s] == v
            if last >= 0:
                before = replace(draw, uniform=column(edge - 1e-12))
                assert before.run(backend)[0][s] == last
            cumulated, last = cumulated + policy[v], v
        for uniform, v in ((0.0, min(policy)), (1 - 2**-53, max(policy))):
            assert replace(draw, uniform=column(uniform)).run(backend)[0][s] == v


@pytest.mark.parametrize("has_ties", [False, True])
def test_a_row_is_the_same_in_any_company_chunk_and_backend(has_ties, monkeypatch):
    draw = skipping(every_filter(1300, seed=8, has_ties=has_ties))
    found = {backend: draw.run(backend) for backend in BACKENDS}
    monkeypatch.setattr(filtered_draw, "CHUNK_ELEMENTS", 3 * 1300)
    found["chunks"] = draw.run("torch")
    alone = [[draw.take([s]).run(backend) for s in range(len(draw.rows))] for backend in BACKENDS]
    for i, parts in enumerate(alone):
        tokens, cuts = zip(*parts, strict=True)
        joined = Support(
            torch.cat([coin_threshold.floor for coin_threshold in cuts]),
            torch.cat([coin_threshold.num_ties for coin_threshold in cuts]),
        )
        found[f"alone {i}"] = torch.cat(tokens), joined
    truth, coin_threshold = found["numba"]
    policies = draw.policies(coin_threshold)
    for name, (tokens, other) in found.items():
        assert torch.equal(tokens[~draw.skip], truth[~draw.skip]), name
        for s, policy in enumerate(draw.policies(other)):
            assert draw.skip[s] or policy == policies[s], name
        assert ((tokens >= 0) & (tokens < 1300)).all()


@backends
def test_without_filters_none_is_looked_for(backend):
    """The promise changes no token where it holds."""
    draw = every_filter(97, seed=2)
    plenty, ones = torch.full((len(draw.probs),), 1 << 30), torch.ones(len(draw.probs))
    for filters in (Filters(plenty, ones, 0 * ones, is_any=False), Filters(plenty, ones, 0 * ones)):
        tokens, coin_threshold = replace(draw, filters=filters).run(backend)
        for s, policy in enumerate(draw.policies(coin_threshold)):
            assert len(policy) == 97
            assert tokens[s] == token_at(policy, float(draw.uniform[s]))


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_and_strides(backend, dtype):
    draw = every_filter(97, seed=4)
    rounded = draw.probs.to(dtype)
    tokens, _ = replace(draw, probs=rounded.T.contiguous().T).run(backend)
    assert torch.equal(tokens, replace(draw, probs=rounded.float()).run(backend)[0])
    padded = torch.cat([draw.probs, draw.probs], 1)[:, :97]
    assert torch.equal(replace(draw, probs=padded).run(backend)[0], draw.run(backend)[0])


@backends
def test_greedy_is_the_largest_and_of_equals_the_first(backend):
    draw = every_filter(97, seed=6, has_ties=True)
    filters = replace(draw.filters, top_k=torch.ones_like(draw.filters.top_k))
    tokens, _ = replace(draw, filters=filters).run(backend)
    assert torch.equal(tokens, draw.probs[draw.rows].argmax(-1))
    assert (draw.probs == draw.probs.amax(-1, keepdim=True)).sum(-1).max() > 1, "no row had equals"


@backends
def test_broken_rows_have_a_valid_token_and_harm_no_other(backend):
    draw = every_filter(97, seed=7)
    broken = draw.probs.clone()
    broken[draw.rows[0]], broken[draw.rows[1], 3], broken[draw.rows[2], 4] = torch.nan, torch.inf, -1.0
    broken[draw.rows[3]], broken[draw.rows[4], 5] = 0.0, 1.0000001
    tokens, truth = replace(draw, probs=broken).run(backend)[0], draw.run(backend)[0]
    assert ((tokens >= 0) & (tokens < 97)).all() and torch.equal(tokens[5:], truth[5:])
    assert tokens[1] != 3 and tokens[2] != 4


def test_kept_tokens_are_no_more_than_asked_for():
    """Of equal probabilities at the cut the first ids, however many equal them."""
    probs = torch.tensor([[0.2, 0.1, 0.1, 0.1, 0.1, 0.4]])
    draw = Draw(
        probs,
        torch.tensor([0]),
        torch.tensor([False]),
        torch.zeros(1).double(),
        Filters(torch.tensor([4]), torch.ones(1), torch.zeros(1)),
    )
    for backend in BACKENDS:
        ids, weights = kept_tokens(probs, draw.rows, draw.run(backend)[1], 4)
        assert ids[0, :2].tolist() == [5, 0] and sorted(ids[0].tolist()) == [0, 1, 2, 5]
        assert weights.tolist() == [[pytest.approx(p) for p in (0.4, 0.2, 0.1, 0.1)]]
