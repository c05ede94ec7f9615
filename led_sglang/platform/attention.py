"""Attention of decode steps for all sequences of a batch at once, instead of torch_native's loop over them.

Several times faster from a handful of sequences on. It is not the default because the rounding of a row then depends on
the longest sequence beside it, and the loop's does not: `LED_SGLANG_CPU_ATTENTION=batched` asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["BatchedAttention"]

MAX_PADDED_TOKENS = 1 << 13  # keys gathered at a time: what the caches hold, and a bound on memory


@dataclass(frozen=True)
class Part:
    """Some rows of the batch: slots of the cache (rows, longest), 0 behind a sequence's end, which `bias` hides."""

    rows: slice
    slots: Tensor
    bias: Tensor  # (rows, 1, 1, longest) float32: 0 or -inf


def parts(slots_of: Tensor, requests: Tensor, lengths: Tensor) -> list[Part]:
    """The batch in parts of at most MAX_PADDED_TOKENS (or one row).

    slots_of: (requests, context) integer; requests, lengths: (rows,) integer.
    """
    longest = int(lengths.max())
    size = max(1, MAX_PADDED_TOKENS // longest)
    found = []
    for start in range(0, len(requests), size):
        rows = slice(start, min(start + size, len(requests)))
        width = int(lengths[rows].max())
        is_behind = torch.arange(width) >= lengths[rows, None]
        slots = slots_of[requests[rows], :width].masked_fill(is_behind, 0)
        bias = torch.zeros(slots.shape).masked_fill_(is_behind, -torch.inf)
        found.append(Part(rows, slots, bias[:, None, None, :]))
    return found


class BatchedAttention(TorchNativeAttnBackend):
    """torch_native with decode steps batched; sliding windows and encoders go its own way."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._parts: list[Part] | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._parts = None
        is_plain = forward_batch.encoder_lens is None and not self.use_sliding_window_kv_pool
        if is_plain and forward_batch.forward_mode.is_decode() and len(forward_batch.seq_lens):
            table = self.req_to_token_pool.req_to_token
            self._parts = parts(table, forward_batch.req_pool_indices, forward_batch.seq_lens)

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        pool, window = self.token_to_kv_pool, layer.sliding_window_size
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        has_window = window is not None and window > -1
        if self._parts is None or has_window or layer.is_cross_attention or keys.dtype != q.dtype:
            output: Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            return output
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        query = q.reshape(-1, layer.tp_q_head_num, 1, layer.qk_head_dim)
        attended = [
            scaled_dot_product_attention(
                query[part.rows],
                _gather(keys, part.slots),
                _gather(values, part.slots),
                attn_mask=part.bias.to(q.dtype),
                scale=layer.scaling,
                enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            )
            for part in self._parts
        ]
        return torch.cat(attended).reshape(len(query), layer.tp_q_head_num * layer.v_head_dim)


def _gather(cache: Tensor, slots: Tensor) -> Tensor:
    """cache: (slots, heads, size); returns (rows, heads, longest, size)."""
    flat = cache.flatten(1).index_select(0, slots.flatten())
    return flat.view(*slots.shape, *cache.shape[1:]).transpose(1, 2)
