"""The ranks' digests: equal while the ranks agree, different for ever once they did not."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from led_sglang.integration.faults import RankDivergence
from led_sglang.integration.scheduler.ranks import FailureCheck, RankCheck
from led_sglang.integration.scheduler.step.call import SamplerCall, attempt

CPU = torch.device("cpu")
steps = st.lists(st.lists(st.integers(0, 200_000), min_size=1, max_size=4), min_size=1, max_size=5)


def digests(tokens: list[list[int]], noise: torch.Tensor) -> tuple[RankCheck, list[int]]:
    """One rank alone, and what it would tell the others at each step."""
    reported: list[int] = []

    def all_gather(digest: torch.Tensor) -> torch.Tensor:
        reported.append(int(digest))
        return torch.stack([digest, digest])

    rank = RankCheck(all_gather, max_rows=8, device=CPU)
    for ids in tokens:
        rank.check(noise[:, : len(ids)])
        rank.note(torch.tensor(ids))
    rank.check(noise[:, :1])
    return rank, reported


@settings(deadline=None)
@given(steps, st.data())
def test_one_other_token_is_seen_at_every_later_step(tokens: list[list[int]], data: st.DataObject) -> None:
    noise = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = data.draw(st.integers(0, len(tokens) - 1))
    row = data.draw(st.integers(0, len(tokens[step]) - 1))
    other = [list(ids) for ids in tokens]
    other[step][row] += data.draw(st.integers(1, 1000))
    _, first = digests(tokens, noise)
    _, second = digests(other, noise)
    assert first[: step + 1] == second[: step + 1]
    assert all(a != b for a, b in zip(first[step + 1 :], second[step + 1 :], strict=True))


def test_other_noise_is_seen_at_once() -> None:
    noise = torch.rand(2, 2, dtype=torch.float64)
    for stream, row in ((0, 0), (1, 1)):
        other = noise.clone()
        other[stream, row] = (other[stream, row] + 2.0**-53) % 1.0
        assert digests([[1, 2]], noise)[1][0] != digests([[1, 2]], other)[1][0]


def test_ranks_that_differ_stop() -> None:
    rank = RankCheck(lambda digest: torch.stack([digest, digest + 1]), max_rows=2, device=CPU)
    with pytest.raises(RankDivergence, match="tensor-parallel ranks disagree"):
        rank.check(torch.rand(2, 1, dtype=torch.float64))


def test_a_divergence_is_not_taken_for_a_fault_of_one_step() -> None:
    def diverge() -> None:
        raise RankDivergence("differ")

    with pytest.raises(RankDivergence):
        attempt(SimpleNamespace(num_step_failures=0), diverge)  # type: ignore[arg-type]
    call = SamplerCall(SimpleNamespace(runtime=SimpleNamespace(num_step_failures=0)))  # type: ignore[arg-type]
    with pytest.raises(RankDivergence):
        call._or_fail(diverge)


def test_a_step_that_failed_on_every_rank_is_a_fault_of_one_step() -> None:
    store = HashStore()
    ranks = [FailureCheck(store, 3, "tp") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(50):
            list(pool.map(FailureCheck.meet, ranks))
    assert store.num_keys() == 1, "what is left of earlier meetings"


def test_a_rank_that_failed_alone_stops() -> None:
    store = HashStore()
    first, second, _ = (FailureCheck(store, 3, "tp") for _ in range(3))
    for rank, num_here in ((first, 1), (second, 2)):
        with pytest.raises(RankDivergence, match=f"failed on {num_here} of 3 tensor-parallel ranks"):
            rank.meet(limit_s=0.01)


def test_the_guard_lets_a_lone_failure_through() -> None:
    alone = FailureCheck(HashStore(), 2, "tp")
    runtime = SimpleNamespace(num_step_failures=0, failed_ranks=SimpleNamespace(meet=lambda: alone.meet(limit_s=0.01)))
    with pytest.raises(RankDivergence, match="failed on 1 of 2"):
        attempt(runtime, lambda: 1 / 0)  # type: ignore[arg-type]
    with pytest.raises(RankDivergence, match="failed on 1 of 2"):
        SamplerCall(SimpleNamespace(runtime=runtime))._or_fail(lambda: 1 / 0)  # type: ignore[arg-type]
    assert runtime.num_step_failures == 2


def test_ranks_take_the_first_ones_tokens_and_those_that_had_others_are_found() -> None:
    """What is accepted of drafts sets the shapes of what follows, so it is agreed upon before it is used."""
    own = [torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8])]
    for different in (False, True):
        reported: list[int] = []

        def all_gather(digest: torch.Tensor, reported: list[int] = reported) -> torch.Tensor:
            reported.append(int(digest))
            return torch.stack([digest, digest])

        for tokens in own[:1] * 2 if not different else own:
            rank = RankCheck(all_gather, max_rows=8, device=CPU, broadcast=lambda token_ids: own[0])
            assert torch.equal(rank.agree(tokens), own[0])
            rank.check(torch.zeros(2, 3, dtype=torch.float64))
        assert (reported[0] != reported[1]) == different
    alone = RankCheck(lambda digest: torch.stack([digest, digest]), max_rows=8, device=CPU)
    assert alone.agree(own[1]) is own[1]
