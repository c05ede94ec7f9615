"""What is accepted has the probabilities of p_LED, whatever the drafts are; seeds are fixed, so this never flickers."""

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats

from led_sglang.ops.policy import led_probs
from tests.unit.integration.scheduler.speculation import world
from tests.unit.integration.scheduler.speculation.world import BACKENDS, Drafter, Request, Server

Serve = Callable[..., Server]
NUM_REQUESTS, LEVEL = 1500, 1e-5
PARAMS = {"phase": "all", "trace": True}


@cache
def policy(text: tuple[int, ...], temperature: float) -> dict[int, float]:
    """p_LED of each candidate, in float64 loops."""
    request = Request(params=PARAMS, temperature=temperature)
    step = world.ORACLE(request, list(text)).step
    assert step is not None
    probs = led_probs(step, request.led_rows())[0].double()
    return dict(zip(step.candidate_ids[0].tolist(), (probs / probs.sum()).tolist(), strict=True))


def ranked(first: int) -> Drafter:
    """By falling probability, from one of them on."""

    def draft(server: Server, request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
        known = policy(tuple(text), request.temperature)
        order = sorted(known, key=lambda token: -known[token])
        order = order[first:] + order[:first]
        return next((token for token in order if token not in taken), 0)

    return draft


def by_seed(server: Server, request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    """The request's own token, where that is an even one: acceptance depends on the token itself."""
    token = server.oracle(request, text).token if len(text) == len(request.prompt) else 1
    return token if token % 2 == 0 and token not in taken else world.any_token(server, request, text, taken, rng)


DRAFTERS = {"likeliest": ranked(0), "third likeliest": ranked(2), "right where even": by_seed}


def p_value(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square; what is expected less than 8 times is one bin."""
    if not set(found) <= set(expected):
        return 0.0
    number = sum(found.values())
    often = [key for key, mass in expected.items() if mass * number >= 8]
    seen = [found[key] for key in often]
    due = [expected[key] * number for key in often]
    if number - sum(due) >= 8:
        seen, due = [*seen, number - sum(seen)], [*due, number - sum(due)]
    return float(stats.chisquare(seen, np.array(due) * sum(seen) / sum(due)).pvalue)


def pairs(prompt: list[int], temperature: float, exponent: float = 1.0) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for one, mass in policy(tuple(prompt), temperature).items():
        after = policy((*prompt, one), temperature)
        total = sum(probability**exponent for probability in after.values())
        found |= {(one, two): mass * probability**exponent / total for two, probability in after.items()}
    return found


@pytest.mark.parametrize("name", DRAFTERS)
def test_two_tokens_have_their_probabilities(name: str, serve: Serve) -> None:
    """The second comes of the same verification where the draft of the first was right, else of the next one."""
    prompt, temperature = [9, 1, 2], 1.3
    requests = [
        Request(params=PARAMS, seed=seed, temperature=temperature, prompt=list(prompt)) for seed in range(NUM_REQUESTS)
    ]
    server = serve(requests, BACKENDS["numba"], DRAFTERS[name], num_nodes=4, max_depth=3, seed=1)
    verified = server.verify()
    server.give_out(verified)
    num_long = int((verified.found[1] > 1).sum())
    server.give_out(server.verify())
    found = Counter((request.output_ids[0], request.output_ids[1]) for request in requests)
    assert p_value(found, pairs(prompt, temperature)) > LEVEL
    assert p_value(found, pairs(prompt, temperature, exponent=0.5)) < LEVEL, "another distribution would be seen"
    assert 0 < num_long < NUM_REQUESTS, num_long
