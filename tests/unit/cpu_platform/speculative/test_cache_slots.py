"""Slots of the cache against plain loops."""

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from led_sglang.cpu_platform.speculative import cache_slots
from led_sglang.cpu_platform.speculative.kv_pool import MovableKVPool

REQUESTS, CONTEXT = 6, 40


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def table(generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(REQUESTS * CONTEXT, generator=generator).view(REQUESTS, CONTEXT).int()


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_the_slots_behind_each_sequence(table: torch.Tensor, index_type: torch.dtype) -> None:
    requests, starts = torch.tensor([4, 0, 2], dtype=index_type), torch.tensor([7, 0, 30], dtype=index_type)
    slots = cache_slots.assign_extend_cache_locs(
        req_pool_indices=requests, req_to_token=table, start_offset=starts, end_offset=starts + 5,
        batch_size=3, draft_token_num=5, device="cpu",
    )  # fmt: skip
    assert slots.dtype == torch.int64
    assert slots.tolist() == [int(table[r, s + i]) for r, s in ((4, 7), (0, 0), (2, 30)) for i in range(5)]


@pytest.mark.parametrize("topk", [1, 3])
def test_the_slots_of_a_draft(table: torch.Tensor, topk: int) -> None:
    requests, lengths, out = torch.tensor([1, 5]), torch.tensor([3, 20]), torch.empty(2 * topk * 4, dtype=torch.int64)
    positions, mrope = torch.zeros(2 * topk, dtype=torch.int64), torch.zeros(3, 2 * topk, dtype=torch.int64)
    cache_slots.assign_draft_cache_locs_contiguous(requests, table, lengths, out, topk, 4, positions, mrope)
    assert out.tolist() == [int(table[r, s + i]) for r, s in ((1, 3), (5, 20)) for i in range(topk * 4)]
    assert positions.tolist() == [3] * topk + [20] * topk
    assert mrope.tolist() == [positions.tolist()] * 3
    before = out.clone()
    cache_slots.assign_draft_cache_locs_contiguous(requests, table, lengths, out.zero_(), topk, 4)
    assert torch.equal(out, before)


def test_new_slots_are_entered_where_they_belong(table: torch.Tensor) -> None:
    expected = table.clone()
    requests, starts, ends = torch.tensor([3, 1, 0]), torch.tensor([2, 9, 4]), torch.tensor([5, 9, 6])
    new = torch.arange(1000, 1005)
    expected[3, 2:5], expected[0, 4:6] = torch.tensor([1000, 1001, 1002]), torch.tensor([1003, 1004])
    cache_slots.assign_req_to_token_pool(requests, table, starts, ends, new, 3)
    assert torch.equal(table, expected)


@pytest.mark.parametrize("seed", range(5))
def test_accepted_nodes_and_where_they_go(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, n, depth = 5, 8, 6
    out_cache_loc = torch.randperm(1000, generator=generator)[: rows * n]
    lens = torch.randint(1, depth + 1, (rows,), generator=generator).int()
    accept_index = torch.full((rows, depth), -1, dtype=torch.int32)
    for row, length in enumerate(lens.tolist()):
        nodes = torch.randperm(n, generator=generator)[:length].sort().values
        accept_index[row, :length] = row * n + nodes
    front, accepted = torch.zeros(rows * depth, dtype=torch.int64), torch.zeros(rows * depth, dtype=torch.int64)
    cache_slots.fill_front_out_cache_loc(lens, out_cache_loc, front)
    cache_slots.fill_accept_out_cache_loc(accept_index, out_cache_loc, accepted, rows * depth)
    pairs = [
        (int(out_cache_loc[row * n + place]), int(out_cache_loc[accept_index[row, place]]))
        for row in range(rows)
        for place in range(int(lens[row]))
    ]
    rest = [(0, 0)] * (rows * depth - len(pairs))
    assert list(zip(front.tolist(), accepted.tolist(), strict=True)) == pairs + rest
    tokens, bonus = torch.randint(100, (rows * depth,), generator=generator).int(), torch.empty(rows).int()
    cache_slots.fill_bonus_tokens(tokens, lens, bonus, depth, rows)
    assert bonus.tolist() == [int(tokens[row * depth + length - 1]) for row, length in enumerate(lens.tolist())]


def test_accepted_tokens_move_in_every_layer() -> None:
    """A move reads all of its sources before it writes: node 2 goes to slot 1 of a row, node 3 to slot 2."""
    pool = MovableKVPool(
        size=16, page_size=1, dtype=torch.float32, head_num=2, head_dim=4, layer_num=3, device="cpu",
        enable_memory_saver=False, enable_kv_cache_copy=True,
    )  # fmt: skip
    buffers = [*pool.k_buffer, *pool.v_buffer]
    for i, buffer in enumerate(buffers):
        buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(i)))
    before = [buffer.clone() for buffer in buffers]
    targets, sources = torch.tensor([5, 6, 7, 9, 0, 0]), torch.tensor([5, 7, 8, 3, 0, 0])
    pool.move_kv_cache(targets, sources)
    for old, new in zip(before, buffers, strict=True):
        expected = old.clone()
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
            expected[target] = old[source]
        assert torch.equal(new, expected)


def test_the_pool_is_sglangs() -> None:
    assert issubclass(MovableKVPool, MHATokenToKVPool)
