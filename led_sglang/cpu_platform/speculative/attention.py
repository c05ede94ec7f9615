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

__all__ = ["Slots", "SpeculativeAttention", "node_slots"]


@dataclass(frozen=True)
class Slots:
    """What each row of a step reads, in the order of positions, its own slot last."""

    table: Tensor  # (rows, longest) int32
    lengths: Tensor  # (rows,) int64


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
    return Slots(slots, lengths)


class SpeculativeAttention(PagedAttention):
    """Paged attention whose rows may have slots of their own instead of a request's row of req_to_token."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._slots: Slots | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._slots = None
        if forward_batch.forward_mode.is_target_verify() and len(forward_batch.seq_lens):
            self.use_slots(
                node_slots(
                    self.req_to_token_pool.req_to_token,
                    forward_batch.req_pool_indices,
                    forward_batch.seq_lens,
                    forward_batch.out_cache_loc,
                    forward_batch.spec_info.custom_mask,
                )
            )

    def use_slots(self, slots: Slots) -> None:
        """Until the next `init_forward_metadata`, row i of a step reads slots.table[i]."""
        self._slots = slots
        if not self.use_sliding_window_kv_pool:
            rows = torch.arange(len(slots.table))
            self._step = DecodeStep.of(slots.table, rows, slots.lengths, torch.get_num_threads())

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        """TARGET_VERIFY, which SGLang counts among the extends, is a decode step here."""
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
            req_to_token, seq_lens = self._slots.table, self._slots.lengths
            req_pool_indices = torch.arange(len(seq_lens))
        looped: Tensor = super()._run_sdpa_forward_decode(
            query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, *others, **named
        )
        return looped
