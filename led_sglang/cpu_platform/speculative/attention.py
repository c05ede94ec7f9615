"""Attention of draft tokens: each node of a tree is a decode step of its own, over the slots of its path.

So a node has the bits of the decode step that would have come to the same token: the same function computes it, of the
same keys in the same order, and other nodes do not enter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from led_sglang.cpu_platform.attention import DecodeStep, PagedAttention
from led_sglang.jit import jit

__all__ = ["Slots", "SpeculativeAttention", "extend_slots", "node_slots"]


@dataclass(frozen=True)
class Slots:
    """What each row of a step reads: the first `lengths` slots of row `rows` of the table, its own slot last."""

    table: Tensor  # (any, longest or more) int32, slots in the order of positions
    rows: Tensor  # (n,) int64
    lengths: Tensor  # (n,) int64


@jit
def _fill_node_slots(table: Any, requests: Any, prefixes: Any, own: Any, mask: Any, slots: Any, lengths: Any) -> None:
    num_requests, n = own.shape
    start = 0  # of the request's block in the flat mask
    for i in range(num_requests):
        prefix = prefixes[i]
        width = prefix + n
        for node in range(n):
            row, length = slots[i * n + node], prefix
            row[:prefix] = table[requests[i], :prefix]
            tree = mask[start + (node + 1) * width - n : start + (node + 1) * width]
            for other in range(node + 1):
                if tree[other]:
                    row[length] = own[i, other]
                    length += 1
            lengths[i * n + node] = length
        start += n * width


def node_slots(table: Tensor, requests: Tensor, prefixes: Tensor, out_cache_loc: Tensor, mask: Tensor) -> Slots:
    """What each node of a batch of trees reads: the prefix, its ancestors, itself.

    table: (requests, context) int32, SGLang's req_to_token; requests, prefixes: (batch,), a request's row and the
    length of its prefix; out_cache_loc: (batch * n,) int64, the nodes' own slots; mask: flat bool, for each request n
    rows of prefix + n columns, SGLang's FULL_MASK.
    """
    num_requests = len(requests)
    own, lengths = out_cache_loc.view(num_requests, -1), torch.empty(len(out_cache_loc), dtype=torch.int64)
    slots = torch.zeros(len(out_cache_loc), int(prefixes.max()) + own.shape[1], dtype=torch.int32)
    _fill_node_slots(
        table.numpy(),
        requests.long().numpy(),
        prefixes.long().numpy(),
        own.numpy(),
        mask.numpy(),
        slots.numpy(),
        lengths.numpy(),
    )
    return Slots(slots, torch.arange(len(slots)), lengths)


def extend_slots(table: Tensor, requests: Tensor, prefixes: Tensor, num_tokens: Tensor) -> Slots:
    """What each token behind a prefix reads: the prefix, the tokens before it, itself.

    table: (requests, context) int32; the others: (batch,). The tokens of a request are one behind the other.
    """
    counts = num_tokens.long()
    firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    lengths = prefixes.long().repeat_interleave(counts) + torch.arange(len(firsts)) - firsts + 1
    return Slots(table, requests.long().repeat_interleave(counts), lengths)


class SpeculativeAttention(PagedAttention):
    """Paged attention whose rows may have slots of their own instead of all that a request's row of the table has."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._slots: Slots | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._slots = None
        if not len(forward_batch.seq_lens):
            return
        requests = (self.req_to_token_pool.req_to_token, forward_batch.req_pool_indices)
        if forward_batch.forward_mode.is_target_verify():
            mask = forward_batch.spec_info.custom_mask
            self.use_slots(node_slots(*requests, forward_batch.seq_lens, forward_batch.out_cache_loc, mask))
        elif forward_batch.forward_mode.is_draft_extend_v2():
            lengths = (forward_batch.extend_prefix_lens, forward_batch.extend_seq_lens)
            self.use_slots(extend_slots(*requests, *lengths))

    def use_slots(self, slots: Slots) -> None:
        """What the rows of the following steps read, until the next `init_forward_metadata`."""
        self._slots = slots
        self._step = None
        if not self.use_sliding_window_kv_pool:
            self._step = DecodeStep.of(slots.table, slots.rows, slots.lengths, torch.get_num_threads())

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        """TARGET_VERIFY and DRAFT_EXTEND_V2, which SGLang counts among the extends, are decode steps here."""
        run = super().forward_extend if self._slots is None else self.forward_decode
        output: Tensor = run(q, k, v, layer, forward_batch, save_kv_cache)
        return output

    def _run_sdpa_forward_decode(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        """torch_native's loop, the way of half precision and sliding windows, over the same slots."""
        if self._slots is not None:
            req_to_token, req_pool_indices, seq_lens = self._slots.table, self._slots.rows, self._slots.lengths
        looped: Tensor = super()._run_sdpa_forward_decode(
            query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, *others, **named
        )
        return looped
