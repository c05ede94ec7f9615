"""Frequencies of coins and tokens over many draws of our own noise.

Fixed seeds: each test passes or fails for ever; a right sampler would have failed one with probability 1e-4.
"""

from dataclasses import replace

import pytest
import torch

from led_sglang.ops import LedStep, led_step, uniforms
from tests.unit.ops.cases.op_cases import make_case, make_inputs, others

N = 20_000
CHI2 = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9, 7: 29.9}  # 1 - 1e-4 quantiles by degrees of freedom


def many_draws(backend: str, **changes: object) -> tuple[LedStep, LedStep]:
    """One row repeated N times under the server's noise, and the float64 truth about that row."""
    one = make_case(1, hidden=32, seed=3, trace=True, **changes)
    zeros = torch.zeros(N, dtype=torch.int64)
    many = replace(
        one,
        final_logits=one.final_logits.expand(N, -1),
        latents=one.latents.expand(-1, N, -1),
        rows=one.rows.take(zeros),
        inputs=make_inputs(*uniforms(zeros + 11, zeros, torch.arange(N))),
    )
    return many.run(backend), one.run("reference")


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = counts.sum() * probs
    return ((counts - expected) ** 2 / expected).sum().item()


def token_counts(step: LedStep, chosen: torch.Tensor) -> torch.Tensor:
    return (step.token_ids[chosen, None] == step.candidate_ids[chosen]).sum(0).double()


@others
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_coin_and_both_branches(backend, temperature):
    step, truth = many_draws(backend, temperature=temperature, top_k=6)
    c = truth.confidence.item()
    assert 0.1 < c < 0.9
    explored = step.explored.double().sum()
    coins = torch.stack([N - explored, explored])
    assert chi_square(coins, torch.tensor([c, 1 - c], dtype=torch.float64)) < CHI2[1]
    exploit, explore = truth.exploit_probs[0].double(), truth.explore_probs[0].double()
    assert (exploit - explore).abs().max() > 0.05
    assert chi_square(token_counts(step, ~step.explored), exploit) < CHI2[5]
    assert chi_square(token_counts(step, step.explored), explore) < CHI2[5]
    assert chi_square(token_counts(step, step.explored), exploit) > CHI2[5]  # the test can tell the branches apart


@others
def test_logprob_is_the_frequency_of_the_token(backend):
    step, truth = many_draws(backend, top_k=6)
    c = truth.confidence.item()
    led = (c * truth.exploit_probs + (1 - c) * truth.explore_probs)[0].double()
    assert chi_square(token_counts(step, torch.ones(N, dtype=torch.bool)), led) < CHI2[5]
    choice = (step.token_ids[:, None] == step.candidate_ids).int().argmax(-1)
    torch.testing.assert_close(step.logprob, led[choice].log().float(), rtol=1e-4, atol=1e-4)


def test_rows_outside_their_phase_are_sampled_plainly():
    """From the whole distribution of the final layer, not from the candidates; what is forbidden never comes."""
    one = make_case(1, 12, hidden=32, seed=3, top_k=2, temperature=8.0, active=False)
    one.final_logits[0, 4] = one.final_logits[0, 11] = -torch.inf
    zeros = torch.zeros(N, dtype=torch.int64)
    inputs = make_inputs(*uniforms(zeros + 11, zeros, torch.arange(N)), active=False)
    many = one.final_logits.expand(N, -1), one.latents.expand(-1, N, -1), one.head, one.rows.take(zeros), inputs
    step = led_step(*many, draws_inactive=True)
    assert step.ok.all() and not step.explored.any()
    probs = (one.final_logits[0].double() / 8).softmax(-1)
    counts = torch.bincount(step.token_ids, minlength=12).double()
    assert counts[4] == counts[11] == 0
    possible = probs > 0
    assert chi_square(counts[possible], probs[possible]) < 37.4, "9 degrees of freedom, 1 - 2e-5"
    assert probs.topk(2).values.sum() < 0.8, "the candidates alone would fail"


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 3), (1 - 2**-53, 3)])
def test_a_plain_draw_inverts_the_cumulated_probability(uniform, token):
    logits = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log()
    case = make_case(1, 5, hidden=8, active=False, temperature=1.0)
    inputs = make_inputs(torch.zeros(1).double(), torch.tensor([uniform], dtype=torch.float64), active=False)
    step = led_step(logits, case.latents, case.head, case.rows, inputs, draws_inactive=True)
    assert step.ok.all() and step.token_ids.tolist() == [token]


def test_plain_draws_leave_the_rows_in_their_phase_alone():
    case = make_case(9, active=torch.arange(9) % 2 == 0, explore=True)
    step, plain = case.run("numba"), case.run("numba", draws_inactive=True)
    for name in ("token_ids", "explored", "depth", "explore_probs"):
        assert torch.equal(getattr(step, name)[::2], getattr(plain, name)[::2])


def test_other_backends_refuse_plain_draws():
    case = make_case(2)
    with pytest.raises(ValueError, match="decodes active rows only"):
        case.run("torch", draws_inactive=True)


def test_a_plain_draw_of_a_broken_row_is_not_ok():
    case = make_case(3, active=False)
    case.final_logits[0, 2], case.final_logits[1] = torch.nan, -torch.inf
    assert case.run("numba", draws_inactive=True).ok.tolist() == [
        False,
        False,
        True,
    ]
