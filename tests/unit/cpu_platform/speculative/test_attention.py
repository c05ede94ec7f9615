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
from led_sglang.cpu_platform.speculative.attention import Slots, SpeculativeAttention, extend_slots, node_slots
from led_sglang.cpu_platform.speculative.draft_attention import DraftAttention, branch_slots
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


def read(slots: Slots) -> list[list[int]]:
    return [slots.table[row, :length].tolist() for row, length in zip(slots.rows, slots.lengths, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_slots_are_those_of_the_path(seed: int, size: int) -> None:
    case = Case(size, seed)
    slots = node_slots(case.table, case.requests, torch.tensor(PREFIXES), case.own, case.mask())
    assert read(slots) == case.paths()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 6, 12])
@pytest.mark.parametrize("seed", range(4))
def test_a_node_has_the_bits_of_a_decode_step(seed: int, size: int, dtype: torch.dtype) -> None:
    case = Case(size, seed, dtype)
    verified, backend = case.verified()
    assert torch.equal(verified, case.decoded(PagedAttention))
    assert torch.equal(backend.token_to_kv_pool.keys[case.own].flatten(1), case.k), "its key was written"


@pytest.mark.parametrize("more", [{"dtype": torch.float16}, {"window": 3}])
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


def test_the_tokens_of_an_extend_read_what_is_before_them() -> None:
    table = torch.arange(500).view(5, 100).int()
    slots = extend_slots(table, torch.tensor([2, 0, 4]), torch.tensor([3, 0, 9]), torch.tensor([2, 1, 4]))
    expected = [(2, 4), (2, 5), (0, 1), (4, 10), (4, 11), (4, 12), (4, 13)]
    assert read(slots) == [list(range(100 * request, 100 * request + length)) for request, length in expected]


@pytest.mark.parametrize("seed", range(3))
def test_an_extend_of_the_draft_has_the_bits_of_decode_steps(seed: int) -> None:
    """Its tokens are a chain: what a verification of that chain gives, and the loop up to rounding."""
    case = Case(4, seed)
    case.trees = [Tree((-1, 0, 1, 2), (0, 1, 2, 3))] * len(PREFIXES)
    for i, (request, prefix) in enumerate(zip(case.requests, PREFIXES, strict=True)):
        case.table[request, prefix : prefix + 4] = case.own[4 * i : 4 * i + 4].int()
    verified, _ = case.verified()
    batch = SimpleNamespace(
        encoder_lens=None, forward_mode=ForwardMode.DRAFT_EXTEND_V2, seq_lens=torch.tensor(PREFIXES) + 4,
        req_pool_indices=case.requests, out_cache_loc=case.own, extend_prefix_lens=torch.tensor(PREFIXES),
        extend_seq_lens=torch.tensor([4] * len(PREFIXES)),
    )  # fmt: skip
    outputs = []
    for kind in (SpeculativeAttention, TorchNativeAttnBackend):
        backend = case.backend(kind, case.table)
        backend.init_forward_metadata(batch)
        outputs.append(backend.forward_extend(case.q, case.k, case.v, case.layer, batch))
    assert torch.equal(outputs[0], verified)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("topk", "num_steps"), [(1, 3), (3, 2), (2, 5)])
def test_a_branch_reads_the_prefix_and_its_own_tokens(topk: int, num_steps: int) -> None:
    case = Case(1)
    backend = DraftAttention(
        SimpleNamespace(
            device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=case.table), token_to_kv_pool=Pool(case.dtype)
        ),
        topk,
        num_steps,
    )
    assert len(backend.attn_backends) == num_steps - 1
    backend.init_forward_metadata(SimpleNamespace(req_pool_indices=case.requests, seq_lens=torch.tensor(PREFIXES)))
    for step, each in enumerate(backend.attn_backends):
        expected = []
        for request, prefix in zip(case.requests, PREFIXES, strict=True):
            for branch in range(topk):
                first = prefix + branch * num_steps
                row = case.table[request]
                expected.append(row[:prefix].tolist() + row[first : first + step + 1].tolist())
        assert read(each._slots) == expected
    assert read(branch_slots(case.table, case.requests, torch.tensor(PREFIXES), topk, num_steps)) == [
        path[: len(path)] for path in read(backend.attn_backends[0]._slots)
    ]


def test_a_step_of_the_draft_is_a_decode_step_over_its_branch() -> None:
    """Two branches of each request in their second step."""
    case = Case(2)
    runner = SimpleNamespace(
        device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=case.table), token_to_kv_pool=Pool(case.dtype)
    )
    draft = DraftAttention(runner, topk=2, num_steps=3)
    batch = SimpleNamespace(req_pool_indices=case.requests, seq_lens=torch.tensor(PREFIXES))
    draft.init_forward_metadata(batch)
    backend = draft.attn_backends[1]
    paths = read(backend._slots)
    batch.out_cache_loc = torch.tensor([path[-1] for path in paths])
    output = backend.forward_decode(case.q, case.k, case.v, case.layer, batch)
    for row, path in enumerate(paths):
        one, plain = slice(row, row + 1), case.backend(PagedAttention, torch.tensor([path]).int())
        plain.token_to_kv_pool = runner.token_to_kv_pool
        single = SimpleNamespace(
            encoder_lens=None, forward_mode=ForwardMode.DECODE, seq_lens=torch.tensor([len(path)]),
            req_pool_indices=torch.tensor([0]), out_cache_loc=batch.out_cache_loc[one],
        )  # fmt: skip
        plain.init_forward_metadata(single)
        assert torch.equal(plain.forward_decode(case.q[one], case.k[one], case.v[one], case.layer, single), output[one])
