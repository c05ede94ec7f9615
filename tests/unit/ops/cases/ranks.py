"""Tensor-parallel ranks as threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops import Head, LedStep
from tests.unit.ops.cases.op_cases import Case


class Ranks:
    """An all-gather between threads that counts how often it was called."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks, timeout=20)
        self.slots: list[Tensor | None] = [None] * num_ranks
        self.num_calls = 0

    def all_gather(self, rank: int, values: Tensor) -> Tensor:
        assert values.dim() == 1
        self.slots[rank] = values
        self.barrier.wait()
        gathered = torch.stack([slot for slot in self.slots if slot is not None])
        self.barrier.wait()
        self.num_calls += rank == 0
        return gathered


def shard(case: Case, start: int, stop: int, padding: int, ranks: Ranks, rank: int) -> Case:
    def pad(rows: Tensor) -> Tensor:
        return torch.cat([rows[start:stop], rows.new_full((padding, *rows.shape[1:]), 9.0)])

    return case.with_head(
        weight=pad(case.head.weight),
        bias=None if case.head.bias is None else pad(case.head.bias),
        num_rows=stop - start,
        first_id=start,
        all_gather=lambda values: ranks.all_gather(rank, values),
    )


def run_ranks(case: Case, backend: str, bounds: list[int]) -> tuple[list[LedStep], int]:
    ranks = Ranks(len(bounds) - 1)
    cases = [shard(case, *bounds[i : i + 2], 5, ranks, i) for i in range(len(bounds) - 1)]
    with ThreadPoolExecutor(len(cases)) as pool:
        steps = list(pool.map(lambda part: part.run(backend), cases))
    return steps, ranks.num_calls


def shards(head: Head, bounds: list[int], width: int, ranks: Ranks) -> list[Head]:
    """Rank i holds rows bounds[i] to bounds[i+1], padded with misleading rows to `width`."""

    def shard(rank: int) -> Head:
        start, stop = bounds[rank : rank + 2]

        def pad(rows: Tensor) -> Tensor:
            return torch.cat([rows[start:stop], rows.new_full((width - (stop - start), *rows.shape[1:]), 9.0)])

        return replace(
            head,
            weight=pad(head.weight),
            bias=None if head.bias is None else pad(head.bias),
            num_rows=stop - start,
            first_id=start,
            all_gather=lambda values: ranks.all_gather(rank, values),
        )

    return [shard(rank) for rank in range(len(bounds) - 1)]
