"""A node of a tree is a decode step over its path, bit for bit, beside whatever other nodes."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from led_sglang.cpu_platform.attention import PagedAttention
from led_sglang.cpu_platform.speculative.attention import SpeculativeAttention, node_slots
from tests.unit.cpu_platform.speculative import random_trees
from tests.unit.cpu_platform.speculative.random_trees import Tree

NUM_SLOTS, HEADS, KV_HEADS, SIZE = 512, 4, 2, 16
PREFIXES = [40, 1, 17]


class Pool:
    """Keys and values of one layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values = (
            torch.randn(NUM_SLOTS, KV_HEADS, SIZE, generator=generator).to(dtype) for _ in range(2)
        )

    def get_key_buffer(self, _: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, _: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, _: Any, where: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys[where.loc], self.values[where.loc] = keys.view(-1, KV_HEADS, SIZE), values.view(-1, KV_HEADS, SIZE)


@dataclass
class Case:
    """Three requests, a tree behind each; every node has a slot, a query, a key and a value."""

    size: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    window: int = -1

    def __post_init__(self) -> None:
        generator, rng = torch.Generator().manual_seed(self.seed), np.random.default_rng(self.seed)
        self.trees = [random_trees.draw(rng, self.size, 30, chain=rng.random()) for _ in PREFIXES]
        slots = torch.randperm(NUM_SLOTS - 1, generator=generator) + 1
        self.table = slots[:300].view(5, 60).int()
        self.requests = torch.tensor([3, 0, 4])
        self.own = slots[300 : 300 + len(PREFIXES) * self.size]
        rows = len(self.own)
        self.q = torch.randn(rows, HEADS * SIZE, generator=generator).to(self.dtype)
        self.k, self.v = (torch.randn(rows, KV_HEADS * SIZE, generator=generator).to(self.dtype) for _ in range(2))
        self.layer = SimpleNamespace(
            layer_id=0, sliding_window_size=self.window, is_cross_attention=False, tp_q_head_num=HEADS,
            tp_k_head_num=KV_HEADS, qk_head_dim=SIZE, v_head_dim=SIZE, scaling=0.3, attn_type=None,
        )  # fmt: skip

    def paths(self) -> list[list[int]]:
        """The slots that each node reads."""
        return [
            self.table[request, :prefix].tolist() + [int(self.own[i * self.size + other]) for other in tree.path(node)]
            for i, (tree, request, prefix) in enumerate(zip(self.trees, self.requests, PREFIXES, strict=True))
            for node in range(self.size)
        ]

    def mask(self) -> torch.Tensor:
        return random_trees.full_mask(self.trees, PREFIXES)

    def backend(self, kind: type[Any], table: torch.Tensor) -> Any:
        pools = SimpleNamespace(req_to_token=table)
        return kind(SimpleNamespace(device="cpu", req_to_token_pool=pools, token_to_kv_pool=Pool(self.dtype)))

    def verified(self) -> tuple[torch.Tensor, Any]:
        backend = self.backend(SpeculativeAttention, self.table)
        batch = SimpleNamespace(
            encoder_lens=None, forward_mode=ForwardMode.TARGET_VERIFY, seq_lens=torch.tensor(PREFIXES),
            req_pool_indices=self.requests, out_cache_loc=self.own,
            spec_info=SimpleNamespace(custom_mask=self.mask()),
        )  # fmt: skip
        backend.init_forward_metadata(batch)
        return backend.forward_extend(self.q, self.k, self.v, self.layer, batch), backend

    def decoded(self, kind: type[Any]) -> torch.Tensor:
        """Node by node: a decode step of a sequence that is the node's path, the keys of all nodes in the cache."""
        outputs = []
        for row, path in enumerate(self.paths()):
            backend = self.backend(kind, torch.tensor([path]).int())
            backend.token_to_kv_pool.set_kv_buffer(None, SimpleNamespace(loc=self.own), self.k, self.v)
            one = slice(row, row + 1)
            batch = SimpleNamespace(
                encoder_lens=None, forward_mode=ForwardMode.DECODE, seq_lens=torch.tensor([len(path)]),
                req_pool_indices=torch.tensor([0]), out_cache_loc=self.own[one],
            )  # fmt: skip
            backend.init_forward_metadata(batch)
            outputs.append(backend.forward_decode(self.q[one], self.k[one], self.v[one], self.layer, batch))
        return torch.cat(outputs)


@pytest.mark.parametrize("size", [1, 2, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_slots_are_those_of_the_path(seed: int, size: int) -> None:
    case = Case(size, seed)
    slots = node_slots(case.table, case.requests, torch.tensor(PREFIXES), case.own, case.mask())
    rows = zip(slots.table.tolist(), slots.lengths.tolist(), strict=True)
    assert [row[:length] for row, length in rows] == case.paths()


@pytest.mark.parametrize("size", [1, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_a_node_has_the_bits_of_a_decode_step(seed: int, size: int) -> None:
    case = Case(size, seed)
    verified, backend = case.verified()
    assert torch.equal(verified, case.decoded(PagedAttention))
    assert torch.equal(backend.token_to_kv_pool.keys[case.own].flatten(1), case.k), "its key was written"


@pytest.mark.parametrize("more", [{"dtype": torch.bfloat16}, {"window": 3}])
def test_half_precision_and_windows_go_the_loops_way(more: dict[str, Any]) -> None:
    case = Case(6, **more)
    assert torch.equal(case.verified()[0], case.decoded(TorchNativeAttnBackend))


def test_a_node_that_sees_another_would_be_noticed() -> None:
    case = Case(6)
    expected = case.decoded(PagedAttention)
    flat = Tree((-1, 0, 1, 2, 3, 4), case.trees[0].tokens)
    assert case.trees[0].parents != flat.parents
    case.trees[0] = flat
    assert not torch.equal(case.verified()[0], expected)


def test_the_next_decode_step_reads_the_table_again() -> None:
    case = Case(2)
    _, backend = case.verified()
    batch = SimpleNamespace(
        encoder_lens=None, forward_mode=ForwardMode.DECODE, seq_lens=torch.tensor([30]),
        req_pool_indices=torch.tensor([2]), out_cache_loc=case.table[2, 29:30].long(),
    )  # fmt: skip
    one = slice(0, 1)
    expected = case.backend(PagedAttention, case.table)
    for each in (backend, expected):
        each.token_to_kv_pool = Pool(case.dtype)
        each.init_forward_metadata(batch)
    first, second = (
        each.forward_decode(case.q[one], case.k[one], case.v[one], case.layer, batch) for each in (backend, expected)
    )
    assert torch.equal(first, second)
