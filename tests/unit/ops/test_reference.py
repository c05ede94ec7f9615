"""The reference on four tokens, with the numbers worked out by hand.

The head is the identity, so logits are the latents themselves; writing log p there makes softmax return p.
Final layer p^L = (.5 .3 .15 .05); h^{L-1} gives (.1 .6 .2 .1); h^{L-2} gives (.25 .05 .6 .1).
"""

import math
from dataclasses import replace

import pytest
import torch

from led_sglang.ops import Head
from tests.unit.ops.cases.op_cases import CPU_BACKENDS, Case, make_inputs, make_rows

FINAL = [0.5, 0.3, 0.15, 0.05]
LATENTS = [[0.1, 0.6, 0.2, 0.1], [0.25, 0.05, 0.6, 0.1]]
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def four_tokens(
    depth=3, top_k=3, coin_uniform=0.0, token=0.0, tau=1.0, final=FINAL, latents=LATENTS, active=True, **changes
) -> Case:
    head = Head(torch.eye(4), num_rows=4, final_norm=lambda hidden: hidden / 2)
    inputs = make_inputs(*torch.tensor([[coin_uniform], [token]], dtype=torch.float64), active)
    rows = make_rows(1, depth, top_k, temperature=tau, **{"any_trace": True, **changes})
    return Case(torch.tensor([final]).log(), torch.tensor(latents)[:, None].log(), head, rows, inputs)


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor([expected]), rtol=1e-5, atol=1e-6)


@every_backend
def test_explore_branch_by_hand(backend):
    step = four_tokens().run(backend)
    # k = 3 candidates 0, 1, 2. Sums from the final layer backwards (Eq. 4):
    #   j=1: .5 .3 .15          / .95 = .526316 .315789 .157895   entropy .993268
    #   j=2: .6 .9 .35          /1.85 = .324324 .486486 .189189   entropy 1.030730
    #   j=3: .85 .95 .95        /2.75 = .309091 .345455 .345455   entropy 1.097273   <- the largest
    close(step.exploit_probs, [0.526316, 0.315789, 0.157895])
    close(step.explore_probs, [0.309091, 0.345455, 0.345455])
    assert step.depth.tolist() == [3]
    close(step.entropy, 1.097273)
    close(step.confidence, 0.5)
    assert step.candidate_ids.tolist() == [[0, 1, 2]]
    close(step.logprob, math.log(0.5 * 0.526316 + 0.5 * 0.309091))


@every_backend
def test_depth_two_stops_one_layer_earlier(backend):
    step = four_tokens(depth=2).run(backend)
    close(step.explore_probs, [0.324324, 0.486486, 0.189189])
    assert step.depth.tolist() == [2]


@every_backend
def test_depth_one_is_the_final_layer(backend):
    step = four_tokens(depth=1).run(backend)
    close(step.explore_probs, [0.526316, 0.315789, 0.157895])
    assert step.depth.tolist() == [1]


@every_backend
@pytest.mark.parametrize(("coin_uniform", "explored"), [(0.0, True), (0.49, True), (0.51, False), (0.999, False)])
def test_coin_explores_with_probability_one_minus_confidence(backend, coin_uniform, explored):
    assert four_tokens(coin_uniform=coin_uniform).run(backend).explored.tolist() == [explored]


@every_backend
def test_inactive_row_never_explores(backend):
    assert four_tokens(active=False, exploit=False).run(backend).explored.tolist() == [False]


@every_backend
@pytest.mark.parametrize(
    ("token", "expected"), [(0.0, 0), (0.309, 0), (0.3092, 1), (0.654, 1), (0.655, 2), (0.9999, 2)]
)
def test_token_is_the_inverse_cdf_of_the_explore_branch(backend, token, expected):
    assert four_tokens(token=token).run(backend).token_ids.tolist() == [expected]


@every_backend
@pytest.mark.parametrize(("token", "expected"), [(0.526, 0), (0.5264, 1), (0.842, 1), (0.8422, 2)])
def test_token_is_the_inverse_cdf_of_the_exploit_branch(backend, token, expected):
    assert four_tokens(coin_uniform=0.9, token=token).run(backend).token_ids.tolist() == [expected]


@every_backend
def test_temperature_reaches_every_layer(backend):
    # tau = 1/2 squares and renormalises over all four tokens: .25 .09 .0225 .0025 / .365 and .01 .36 .04 .01 / .42
    step = four_tokens(depth=2, tau=0.5).run(backend)
    final, latent = [0.684932, 0.246575, 0.061644], [0.0238095, 0.857143, 0.0952381]
    total = sum(final) + sum(latent)
    close(step.confidence, 0.684932)
    close(step.explore_probs, [(a + b) / total for a, b in zip(final, latent, strict=True)])


@every_backend
def test_without_exploit_the_logprob_is_that_of_explore(backend):
    step = four_tokens(exploit=False, coin_uniform=0.9, token=0.5).run(backend)
    assert step.explored.tolist() == [True] and step.token_ids.tolist() == [1]
    close(step.logprob, math.log(0.345455))


@every_backend
def test_latent_norm_reaches_only_the_latents(backend):
    # "norm" halves the log-probabilities: h^{L-1} becomes the roots .316 .775 .447 .316 over their sum, and the final
    # layer stays: (.5 + .170541, .3 + .417738, .15 + .241181) / 1.779460
    step = four_tokens(depth=2, latent_norm=True).run(backend)
    close(step.explore_probs, [0.376823, 0.403346, 0.219831])


@every_backend
def test_normalize_layers_gives_each_layer_the_same_weight(backend):
    # (.526316 .315789 .157895) + (.1 .6 .2) / .9 = .637427 .982456 .380117, over 2
    close(four_tokens(depth=2, normalize_layers=True).run(backend).explore_probs, [0.318713, 0.491228, 0.190058])


@every_backend
def test_latent_offset_skips_a_layer(backend):
    # final + h^{L-2}: .75 .35 .75 over 1.85
    step = four_tokens(depth=2, latent_offset=1).run(backend)
    close(step.explore_probs, [0.405405, 0.189189, 0.405405])


@every_backend
def test_min_p_drops_a_candidate_from_every_layer(backend):
    # .15 < .4 * .5: token 2 is gone. j=1 .625 .375 (.661563); j=2 .6 .9 = .4 .6 (.673012); j=3 .85 .95 (.691603)
    step = four_tokens(min_p=0.4).run(backend)
    close(step.exploit_probs, [0.625, 0.375, 0.0])
    close(step.explore_probs, [0.472222, 0.527778, 0.0])


@every_backend
def test_forbidden_token_stays_forbidden_in_every_layer(backend):
    step = four_tokens(top_k=4, final=[0.6, 0.4, 0.0, 0.0], token=0.999999).run(backend)
    close(step.exploit_probs, [0.6, 0.4, 0.0, 0.0])
    # j=2: .7 1.0 (.677); j=3: .95 1.05 (.691897)
    close(step.explore_probs, [0.475, 0.525, 0.0, 0.0])
    assert step.token_ids.tolist() == [1]


@every_backend
def test_row_with_a_smaller_top_k_ignores_the_rest(backend):
    case = four_tokens(top_k=2)
    wide = replace(case, rows=replace(case.rows, max_top_k=3, mixed_top_k=True))
    close(wide.run(backend).exploit_probs, [0.625, 0.375, 0.0])


@every_backend
@pytest.mark.parametrize(("coin_uniform", "expected"), [(0.9, 0), (0.0, 1)])
def test_greedy_takes_the_largest_of_the_branch_at_temperature_one(backend, coin_uniform, expected):
    step = four_tokens(depth=2, greedy=True, tau=0.01, coin_uniform=coin_uniform, token=0.999).run(backend)
    close(step.confidence, 0.5)
    assert step.token_ids.tolist() == [expected]


@every_backend
def test_equal_entropies_go_to_the_smallest_depth(backend):
    same = four_tokens(latents=[FINAL, FINAL])
    assert same.run(backend).depth.tolist() in ([1], [2], [3])  # rounding may break an exact tie of sums
    one_candidate = four_tokens(top_k=1)
    assert one_candidate.run(backend).depth.tolist() == [1]


def test_reference_breaks_an_exact_tie_downwards():
    halves = four_tokens(final=[0.5, 0.25, 0.25, 0.0], latents=[[0.5, 0.25, 0.25, 0.0]] * 2, coin_uniform=0.0, top_k=2)
    assert halves.run("reference").depth.tolist() == [1]


@every_backend
def test_full_computes_the_explore_branch_of_an_exploiting_row(backend):
    step = four_tokens(coin_uniform=0.9, trace=True, token=0.1).run(backend)
    assert step.explored.tolist() == [False] and step.depth.tolist() == [3]
    close(step.explore_probs, [0.309091, 0.345455, 0.345455])
    close(step.logprob, math.log(0.5 * 0.526316 + 0.5 * 0.309091))


@every_backend
def test_row_that_computed_nothing_says_depth_one(backend):
    step = four_tokens(coin_uniform=0.9).run(backend)
    assert step.depth.tolist() == [1]
    assert step.explore_probs.tolist() == step.exploit_probs.tolist()
    close(step.entropy, 0.993268)
