"""Attention of a draft model's steps: each branch of the draft reads the prefix and its own tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from led_sglang.cpu_platform.speculative.attention import Slots, SpeculativeAttention
from led_sglang.jit import jit

__all__ = ["DraftAttention", "branch_slots"]


@jit
def _fill_branch_slots(table: Any, requests: Any, prefixes: Any, topk: int, num_steps: int, slots: Any) -> None:
    for i in range(len(requests)):
        source, prefix = table[requests[i]], prefixes[i]
        for branch in range(topk):
            row, first = slots[i * topk + branch], prefix + branch * num_steps
            row[:prefix] = source[:prefix]
            row[prefix : prefix + num_steps] = source[first : first + num_steps]


def branch_slots(table: Tensor, requests: Tensor, prefixes: Tensor, topk: int, num_steps: int) -> Slots:
    """What each branch reads in the first step; in step i, i slots more.

    table: (requests, context) int32, SGLang's req_to_token, in which branch b of a request has the num_steps positions
    from prefix + b * num_steps on; requests, prefixes: (batch,). The branches of a request are one behind the other, as
    in SGLang's batch of a step.
    """
    lengths = prefixes.long().repeat_interleave(topk) + 1
    if topk == 1:  # the table as it stands
        return Slots(table, requests.long(), lengths)
    slots = torch.zeros(len(lengths), int(prefixes.max()) + num_steps, dtype=torch.int32)
    _fill_branch_slots(table.numpy(), requests.long().numpy(), prefixes.long().numpy(), topk, num_steps, slots.numpy())
    return Slots(slots, torch.arange(len(slots)), lengths)


class DraftAttention:
    """The attention backend of each step but the last, which attends to nothing: SGLang's multi-step draft backend."""

    needs_cpu_seq_lens = True

    def __init__(self, model_runner: Any, topk: int, num_steps: int) -> None:
        self.topk, self.num_steps = topk, num_steps
        self.attn_backends = [SpeculativeAttention(model_runner) for _ in range(num_steps - 1)]
        if any(backend.use_sliding_window_kv_pool for backend in self.attn_backends):
            raise ValueError("led_sglang's CPU platform has no draft models whose cache has sliding windows")

    def init_forward_metadata(self, forward_batch: Any) -> None:
        slots = branch_slots(
            self.attn_backends[0].req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            self.topk,
            self.num_steps,
        )
        for step, backend in enumerate(self.attn_backends):
            backend.use_slots(Slots(slots.table, slots.rows, slots.lengths + step))
