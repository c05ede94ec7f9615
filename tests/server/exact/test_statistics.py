"""Coins and tokens of a running server follow the probabilities that it reports.

`test_exact.py` shows that the reported probabilities are the paper's; here the draws are held against them. All
p-values of this file together are too small by chance with probability FALSE_ALARM (Bonferroni over NUM_TESTS). Seeds
are fixed, so a red test stays red; the mutants show that wrong draws would be red.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from led_sglang.testing import Reply
from led_sglang.testing.oracle import forward
from tests.server.checkpoints import CLOSE_ID
from tests.server.clients import Client, Oracle, Request, check, thinking_prompt
from tests.server.recompute import Mutation, Query, led_distribution, oracle_of

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

FALSE_ALARM = 1e-6
NUM_TESTS = 64  # more than there are
LEVEL = FALSE_ALARM / NUM_TESTS

NUM_REQUESTS, NUM_TOKENS = 32, 128
NEVER = {CLOSE_ID: -1e4}  # thinking lasts to the end
ASKED = {
    "paper": Query(logit_bias=NEVER),
    "hot and wide": Query(temperature=1.0, top_k=16, depth=12, logit_bias=NEVER),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Traced steps of many requests with neighbouring seeds: (N, T) or (N, T, K)."""

    explored: NDArray[np.bool_]
    confidence: Array
    exploit: Array
    explore: Array
    choice: NDArray[np.int64]  # place of the token among the candidates
    logprob: Array

    @cached_property
    def branch(self) -> Array:
        return np.where(self.explored[..., None], self.explore, self.exploit)

    @cached_property
    def led(self) -> Array:
        """(N, T, K): p_LED, the coin summed out."""
        share = self.confidence[..., None]
        return share * self.exploit + (1 - share) * self.explore

    def chosen(self, probs: Array) -> Array:
        return np.take_along_axis(probs, self.choice[..., None], -1)[..., 0]

    def coin_uniforms(self) -> Array:
        """Uniform and independent if the coins are fair: the coin's value blurred over its own stretch of [0, 1)."""
        blur, doubt = np.random.default_rng(1).random(self.confidence.shape), 1 - self.confidence
        return np.where(self.explored, blur * doubt, doubt + blur * self.confidence)

    def token_uniforms(self, probs: Array) -> Array:
        """Uniform and independent if the tokens follow `probs` (randomised probability integral transform)."""
        blur, upto = np.random.default_rng(2).random(self.confidence.shape), self.chosen(probs.cumsum(-1))
        return np.clip((upto - blur * self.chosen(probs)) / probs.sum(-1), 0, 1 - 1e-12)


@pytest.fixture(scope="module", params=ASKED)
def draws(request: pytest.FixtureRequest, client: Client) -> Draws:
    query, first = ASKED[request.param], 1000 * list(ASKED).index(request.param)
    seeds = range(first, first + NUM_REQUESTS)
    requests = [Request(thinking_prompt(seed, 12), query, num_tokens=NUM_TOKENS, seed=seed) for seed in seeds]
    replies = client.together(requests)
    metas = [reply.meta for reply in replies]
    candidates = np.array([meta["led_candidates"] for meta in metas])
    tokens = np.array([reply.output_ids for reply in replies])
    assert (candidates == tokens[..., None]).sum(-1).min() == 1
    return Draws(
        explored=np.array([meta["led_explored"] for meta in metas]),
        confidence=np.array([meta["led_confidence"] for meta in metas]),
        exploit=np.array([meta["led_exploit"] for meta in metas]),
        explore=np.array([meta["led_explore"] for meta in metas]),
        choice=(candidates == tokens[..., None]).argmax(-1),
        logprob=np.array([meta["led_logprob"] for meta in metas]),
    )


def coin_p_value(explored: NDArray[np.bool_], probability: Array) -> float:
    """Two-sided, exact: the number of explored steps is Poisson-binomial."""
    mass = np.ones(1)
    for p in probability.ravel():
        mass = np.append(mass * (1 - p), 0.0) + np.append(0.0, mass * p)
    count = int(explored.sum())
    return float(min(1.0, 2 * min(mass[: count + 1].sum(), mass[count:].sum())))


def uniform_p_values(values: Array) -> list[float]:
    """Kolmogorov-Smirnov, and chi-square on 32 bins of equal mass."""
    counts = np.bincount((values.ravel() * 32).astype(int), minlength=32)
    return [float(stats.kstest(values.ravel(), "uniform").pvalue), float(stats.chisquare(counts).pvalue)]


def pair_p_value(left: Array, right: Array) -> float:
    """Two uniforms that know nothing of each other fill 6 x 6 cells evenly."""
    cells = (left.ravel() * 6).astype(int) * 6 + (right.ravel() * 6).astype(int)
    return float(stats.chisquare(np.bincount(cells, minlength=36)).pvalue)


def test_coins(draws: Draws) -> None:
    explored, doubt = draws.explored, 1 - draws.confidence
    assert 0.1 < explored.mean() < 0.9, "the model explores always or never: nothing is tested"
    assert coin_p_value(explored, doubt) > LEVEL
    order = np.argsort(doubt, axis=None)
    for part in np.array_split(order, 8):  # by confidence: a coin that ignored it could still be right in sum
        assert coin_p_value(explored.ravel()[part], doubt.ravel()[part]) > LEVEL
    assert min(uniform_p_values(draws.coin_uniforms())) > LEVEL


def test_tokens_follow_the_branch_that_the_coin_picked(draws: Draws) -> None:
    uniforms = draws.token_uniforms(draws.branch)
    for part in (uniforms, uniforms[draws.explored], uniforms[~draws.explored]):
        assert min(uniform_p_values(part)) > LEVEL


def test_tokens_follow_p_led_with_the_coin_summed_out(draws: Draws) -> None:
    assert min(uniform_p_values(draws.token_uniforms(draws.led))) > LEVEL


def test_draws_know_nothing_of_each_other(draws: Draws) -> None:
    """Coin and token of a step, steps in a row, and requests with neighbouring seeds at the same position."""
    coins, tokens = draws.coin_uniforms(), draws.token_uniforms(draws.branch)
    assert pair_p_value(coins, tokens) > LEVEL
    for uniforms in (coins, tokens):
        assert pair_p_value(uniforms[:, :-1], uniforms[:, 1:]) > LEVEL
        assert pair_p_value(uniforms[:-1], uniforms[1:]) > LEVEL
    assert pair_p_value(coins[:, 1:], tokens[:, :-1]) > LEVEL


def importance_z(draws: Draws, logprob: Array, target: Array) -> float:
    """The mean of target / p_LED at the drawn tokens is 1; here in standard deviations from it, which are known."""
    ratios = draws.chosen(target) / np.exp(logprob)
    spread = (np.square(target) / np.where(draws.led > 0, draws.led, 1)).sum(-1) - 1  # exact variance of each step
    return float((ratios - 1).sum() / np.sqrt(spread.sum()))


def bounded(draws: Draws, target: Array) -> Array:
    """`target` where its ratio to p_LED stays below 50, so that the normal law holds; p_LED itself elsewhere."""
    ratios = target / np.where(draws.led > 0, draws.led, 1)
    return np.where(ratios.max(-1, keepdims=True) < 50, target, draws.led)


def test_importance_ratios_average_one(draws: Draws) -> None:
    """What a trainer does with `led_logprob`: reweight the drawn tokens to another policy, here three of them."""
    is_possible = draws.led > 0
    flat = is_possible / is_possible.sum(-1, keepdims=True)
    for target in (draws.exploit, draws.explore, (flat + draws.led) / 2):
        assert abs(importance_z(draws, draws.logprob, bounded(draws, target))) < stats.norm.isf(LEVEL / 2)


def test_wrong_draws_would_be_noticed(draws: Draws) -> None:
    """The power of the tests above: likely faults, each far below the level."""
    doubt, uniforms = 1 - draws.confidence, draws.coin_uniforms()
    assert coin_p_value(draws.explored, 1 - draws.exploit[..., 0]) < LEVEL  # confidence among the candidates only
    assert coin_p_value(draws.explored, 0.85 * doubt) < LEVEL
    assert pair_p_value(uniforms, uniforms) < LEVEL  # the token drawn with the coin's noise
    assert min(uniform_p_values(draws.token_uniforms(draws.exploit))) < LEVEL  # the explore branch never sampled
    assert min(uniform_p_values(draws.token_uniforms(draws.exploit)[draws.explored])) < LEVEL  # branches swapped
    reported = np.log(draws.chosen(draws.exploit))  # the exploit branch's probability reported as p_LED
    assert abs(importance_z(draws, reported, bounded(draws, draws.explore))) > stats.norm.isf(LEVEL / 2)


# -- penalties and bias ----------------------------------------------------------------------------------------------

EDITED: dict[str, Query] = {
    # Enough of it that a bias in the final layer alone would show.
    "bias": Query(
        1.0, top_k=16, depth=12, exploit=False, logit_bias={**NEVER, **dict.fromkeys(range(0, 700, 2), -2.0)}
    ),
    "frequency": Query(temperature=1.0, frequency_penalty=1.9, logit_bias=NEVER),
    "presence": Query(temperature=1.0, presence_penalty=1.9, logit_bias=NEVER),
    "repetition": Query(temperature=1.0, repetition_penalty=1.5, logit_bias=NEVER),
    "all": Query(
        temperature=0.8,
        frequency_penalty=0.6,
        presence_penalty=0.6,
        repetition_penalty=1.2,
        logit_bias={**NEVER, 8: 8.0, 9: 7.0},
    ),
}


@dataclass(frozen=True)
class Recomputed:
    """Drawn tokens under the recomputed p_LED."""

    uniforms: Array  # (N,): uniform and independent if each was drawn from it
    lowered: Array  # (N,): the probability of all candidates with a negative bias
    is_lowered: NDArray[np.bool_]  # (N,): one of them was drawn


def recomputed(oracle: Oracle, replies: list[Reply], mutation: Mutation) -> Recomputed:
    """Nothing that the server reports goes in."""
    blur, rows = np.random.default_rng(3), []
    for reply in replies:
        prompt_ids, output_ids, query = reply.request.prompt_ids, reply.output_ids, reply.request.query
        steps, layers = (
            oracle_of(oracle.model, prompt_ids, query, mutation),
            forward(oracle.model, prompt_ids + output_ids),
        )
        for i, token in enumerate(output_ids):
            step = steps.step(layers, len(prompt_ids) + i - 1, output_ids[:i], query)
            candidates, _, led = led_distribution(step, query)
            place = int(np.flatnonzero(candidates == token)[0])
            uniform = led.cumsum()[place] - blur.random() * led[place]
            is_lowered = np.array([query.logit_bias.get(int(c), 0.0) < 0 for c in candidates])
            rows.append((uniform, led[is_lowered].sum(), is_lowered[place]))
    uniforms, lowered, drawn = zip(*rows, strict=True)
    return Recomputed(np.clip(uniforms, 0, 1 - 1e-12), np.clip(lowered, 0, 1), np.array(drawn))


@pytest.mark.parametrize("name", EDITED)
def test_tokens_follow_the_recomputed_probabilities(name: str, client: Client, oracle: Oracle) -> None:
    """Penalties and bias in every layer."""
    query, first = EDITED[name], 5000 + 1000 * list(EDITED).index(name)
    seeds = range(first, first + (24 if name == "bias" else 8))
    requests = [Request(thinking_prompt(s, 12), query, num_tokens=64, seed=s) for s in seeds]
    # What penalties count in a crowd, the engine's schedule decides.
    replies = client.together(requests) if name == "bias" else [client.generate(request) for request in requests]
    check(oracle, *replies)
    found = recomputed(oracle, replies, Mutation())
    assert min(uniform_p_values(found.uniforms)) > LEVEL
    if name != "bias":
        return
    assert coin_p_value(found.is_lowered, found.lowered) > LEVEL
    mutant = recomputed(oracle, replies, Mutation(edit_final_only=True))  # a bias that would stop at the final layer
    assert coin_p_value(mutant.is_lowered, mutant.lowered) < LEVEL
