"""p_LED of all candidates: what the tokens are drawn from, in every backend."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from led_sglang.ops import LedStep
from led_sglang.ops.policy import led_probs
from tests.unit.ops.cases.op_cases import CPU_BACKENDS, make_case, make_rows

ROWS = 64
ALTERNATING = torch.tensor([False, True] * (ROWS // 2))
CASES = {
    "paper": {},
    "no exploit branch": {"exploit": ALTERNATING},
    "dropped candidates": {"min_p": 0.1, "top_k": torch.tensor([3, 8] * (ROWS // 2))},
    "ablations": {"normalize_layers": ALTERNATING, "latent_norm": ALTERNATING, "depth": 3},
    "cold": {"temperature": 0.05},  # either branch's candidates may underflow
    "greedy": {"greedy": ALTERNATING},
    "greedy without exploit branch": {"greedy": True, "exploit": ALTERNATING},
}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_token_was_drawn_from_it(name, backend):
    case = make_case(ROWS, trace=True, **CASES[name])
    step, rows = case.run(backend), case.rows
    probs = led_probs(step, rows)
    torch.testing.assert_close(probs.sum(-1), torch.ones(ROWS))
    assert (probs >= 0).all() and step.ok.all()
    own = (probs * (step.candidate_ids == step.token_ids[:, None])).sum(-1)
    assert (own > 0).all()
    sampled = ~rows.greedy
    torch.testing.assert_close(own[sampled].log(), step.logprob[sampled], rtol=1e-5, atol=1e-5)
    assert ((probs > 0).sum(-1) <= torch.where(rows.greedy, 2, rows.top_k)).all()


def step_of(exploit, explore, confidence):
    one = torch.zeros(1, dtype=torch.int64)
    return LedStep(one, one == 0, one == 0, one, torch.tensor([confidence]), None, one[:, None], exploit, explore, None)


@pytest.mark.parametrize(
    ("greedy", "exploit", "expected"),
    [
        (False, True, [0.6 * 0.5 + 0.4 * 0.2, 0.6 * 0.3 + 0.4 * 0.5, 0.6 * 0.2 + 0.4 * 0.3]),
        (False, False, [0.2, 0.5, 0.3]),
        (True, True, [0.6, 0.4, 0.0]),
        (True, False, [0.0, 1.0, 0.0]),
    ],
)
def test_by_hand(greedy, exploit, expected):
    step = step_of(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.5, 0.3]]), 0.6)
    probs = led_probs(step, make_rows(1, top_k=3, greedy=greedy, exploit=exploit))
    torch.testing.assert_close(probs, torch.tensor([expected]))


def test_greedy_branches_that_agree_leave_one_token():
    step = step_of(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]]), 0.7)
    torch.testing.assert_close(led_probs(step, make_rows(1, top_k=2, greedy=True)), torch.tensor([[1.0, 0.0]]))


def test_a_candidate_that_one_branch_may_draw_does_not_round_to_zero():
    """As exploit + (1 - c) * (explore - exploit) would, or its other form."""
    for tiny in ([1.0, 1e-30], [1e-30, 1.0]):
        other = [1.0, 0.0] if tiny[0] == 1.0 else [0.0, 1.0]
        for exploit, explore in ((tiny, other), (other, tiny)):
            step = step_of(torch.tensor([exploit]), torch.tensor([explore]), 0.3)
            assert (led_probs(step, make_rows(1, top_k=2)) > 0).all()


def test_no_host_sync():
    rows = make_rows(4, top_k=3, greedy=True)
    with FakeTensorMode():
        flags = {name: torch.empty(4, dtype=torch.bool, device="cuda") for name in ("greedy", "exploit")}
        number, probs = torch.empty(4, dtype=torch.int64, device="cuda"), torch.empty(4, 3, device="cuda")
        step = LedStep(number, number, number, number, probs[:, 0], None, number[:, None], probs, probs, None)
        assert led_probs(step, replace(rows, **flags)).device.type == "cuda"
