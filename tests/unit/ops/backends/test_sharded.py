"""A head split over two tensor-parallel ranks, each rank a thread: same result as the whole head, one collective."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
import torch

from led_sglang.ops import LedStep, backend_for, led_step
from led_sglang.ops.backends import one_pass
from tests.unit.ops.cases.op_cases import CPU, make_case, others
from tests.unit.ops.cases.ranks import Ranks, run_ranks, shard


@others
@pytest.mark.parametrize("vocab", [97, 32001])
@pytest.mark.parametrize("head", [{}, {"softcap": 6.0, "scale": 1.5}, {"bias": True}])
def test_two_ranks_equal_the_whole_head(backend, vocab, head):
    if "bias" in head:
        head = {"bias": torch.linspace(-1, 1, vocab)}
    case = make_case(9, vocab, hidden=64 if vocab == 97 else 256, trace=True).with_head(**head)
    steps, num_calls = run_ranks(case, backend, [0, vocab // 2 + 1, vocab])
    whole = case.run(backend)
    assert num_calls == 1
    for field in fields(LedStep):
        first, second = (getattr(step, field.name) for step in steps)
        assert torch.equal(first, second), f"ranks disagree about {field.name}"
        expected = getattr(whole, field.name)
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)


def test_no_collective_where_no_row_needs_one():
    steps, num_calls = run_ranks(make_case(explore=False), "torch", [0, 50, 97])
    assert num_calls == 0 and torch.equal(steps[0].token_ids, steps[1].token_ids)


@others
def test_a_rank_of_nothing_but_padding(backend):
    case = make_case(explore=True)
    steps, _ = run_ranks(case, backend, [0, 97, 97])
    assert steps[0].token_ids.tolist() == steps[1].token_ids.tolist() == case.run("reference").token_ids.tolist()


@others
def test_broken_latents_break_the_row_on_every_rank(backend):
    case = make_case(4, explore=True)
    latents = case.latents.clone()
    latents[0, 1, 0] = torch.inf
    steps, _ = run_ranks(replace(case, latents=latents), backend, [0, 50, 97])
    assert [step.ok.tolist() for step in steps] == [[True, False, True, True]] * 2


def test_reference_refuses_a_shard():
    with pytest.raises(ValueError, match="whole head"):
        make_case().with_head(all_gather=lambda values: values[None]).run("reference")


@pytest.mark.parametrize("backend", ["torch", "numba", "eager"])
def test_more_candidates_than_a_shard_has_tokens(backend):
    case = make_case(5, 97, top_k=64, explore=True)
    steps, num_calls = run_ranks(case, backend, [0, 50, 97])
    truth = case.run("reference")
    assert num_calls == 1
    for step in steps:
        assert step.token_ids.tolist() == truth.token_ids.tolist()
        torch.testing.assert_close(step.explore_probs, truth.explore_probs, rtol=1e-4, atol=1e-5)


def test_what_each_rank_knows_meets_in_the_one_collective():
    """A rank's head pass knows its own share of the vocabulary; of one row nothing is known."""
    case = make_case(6, 97, explore=True)
    ranks = Ranks(2)
    mask, tau = torch.arange(6) != 2, case.rows.tau

    def run(rank: int) -> LedStep:
        part = shard(case, *([0, 50], [50, 97])[rank], 5, ranks, rank)
        lse = torch.empty(3, 6)
        backend_for("torch", CPU).head_pass(part.latents[0], part.latents, part.head, tau, mask, lse)
        known_lse = one_pass.known_lse_of(part.rows, lse, mask, one_pass.COIN_THRESHOLD)
        return led_step(part.final_logits, part.latents, part.head, part.rows, part.inputs, known_lse=known_lse)

    with ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(run, range(2)))
    assert ranks.num_calls == 1
    assert steps[0].token_ids.tolist() == steps[1].token_ids.tolist() == case.run("reference").token_ids.tolist()
