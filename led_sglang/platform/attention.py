"""Attention of decode steps straight from the paged cache, instead of torch_native's loop over sequences.

The loop costs one `scaled_dot_product_attention` a sequence and layer, copies of its keys and values included; here one
compiled function walks the slots of every sequence where they lie. A row is computed alone, in an order that depends on
nothing but its own length: what else is in the batch does not change a bit of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

__all__ = ["PagedAttention"]

MIN_KEYS_A_THREAD = 2048  # below, handing work over costs more than it saves


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    # Sums may be reordered (that is what vectorising them is), but infinities and NaNs keep their meaning.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    try:
        kept: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep the machine code: compiled anew in each process, in about two seconds
        kept = numba.njit(**options)(function)
    return kept


@compiled
def _gather(cache: Any, slots: Any, gathered: Any) -> None:
    """Copying first and computing then keeps many reads of scattered memory under way: nearly twice as fast."""
    for i in range(len(slots)):
        source, target = cache[slots[i]], gathered[i]
        for d in range(len(source)):
            target[d] = source[d]


@compiled
def _score(query: Any, keys: Any, scale: Any, scores: Any) -> None:
    """query: (query heads, size); keys: (length, heads, size); scores: (query heads, length or more), written."""
    num_heads, group = keys.shape[1], len(query) // keys.shape[1]
    for head in range(num_heads):
        for i in range(len(keys)):
            key = keys[i, head]
            for member in range(head * group, (head + 1) * group):
                own, product = query[member], np.float32(0)
                for d in range(len(own)):
                    product += own[d] * key[d]
                scores[member, i] = product * scale


@compiled
def _softmax(scores: Any) -> None:
    highest, total = np.float32(-np.inf), np.float32(0)
    for i in range(len(scores)):
        highest = max(highest, scores[i])
    for i in range(len(scores)):
        scores[i] = np.exp(scores[i] - highest)
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


@compiled
def _mix(values: Any, weights: Any, output: Any) -> None:
    """values: (length, heads, size); weights: (query heads, length or more); output: (query heads, size), written."""
    num_heads, group = values.shape[1], len(output) // values.shape[1]
    output[:, :] = 0
    for head in range(num_heads):
        for i in range(len(values)):
            value = values[i, head]
            for member in range(head * group, (head + 1) * group):
                own, weight = output[member], weights[member, i]
                for d in range(len(own)):
                    own[d] += weight * value[d]


@compiled
def attend(
    query: Any, keys: Any, values: Any, table: Any, requests: Any, lengths: Any, scale: Any, output: Any, rows: Any
) -> None:
    """softmax(scale q K^T) V of some rows; every array is C-contiguous.

    query, output: (rows, query heads, size) float32; keys, values: (slots, heads, size) float32; table: (requests,
    context) int32 slots; requests, lengths: (rows,) int64; rows: (first, last + 1).
    """
    longest = lengths[rows[0] : rows[1]].max()
    scores = np.empty((query.shape[1], longest), np.float32)
    flat_keys, flat_values = keys.reshape(len(keys), -1), values.reshape(len(values), -1)
    own_keys = np.empty((longest, keys.shape[1], keys.shape[2]), np.float32)
    own_values = np.empty((longest, values.shape[1], values.shape[2]), np.float32)
    for row in range(rows[0], rows[1]):
        length = lengths[row]
        slots = table[requests[row], :length]
        _gather(flat_keys, slots, own_keys.reshape(longest, -1))
        _gather(flat_values, slots, own_values.reshape(longest, -1))
        _score(query[row], own_keys[:length], scale, scores)
        for head in range(len(scores)):
            _softmax(scores[head, :length])
        _mix(own_values[:length], scores, output[row])


@dataclass(frozen=True)
class DecodeStep:
    """What all layers of a step share, as numpy sees it."""

    table: Any  # (requests, context) int32
    requests: Any  # (rows,) int64
    lengths: Any  # (rows,) int64
    parts: tuple[tuple[int, int], ...]  # rows of each thread

    @classmethod
    def of(cls, table: Tensor, requests: Tensor, lengths: Tensor, num_threads: int) -> DecodeStep:
        keys_before = np.cumsum(lengths.numpy())
        num_parts = int(min(num_threads, max(1, keys_before[-1] // MIN_KEYS_A_THREAD)))
        cuts = np.searchsorted(keys_before, keys_before[-1] * np.arange(1, num_parts) / num_parts)
        bounds = sorted({0, *(int(cut) + 1 for cut in cuts), len(keys_before)})
        return cls(table.numpy(), requests.long().numpy(), lengths.long().numpy(), tuple(pairwise(bounds)))


class PagedAttention(TorchNativeAttnBackend):
    """torch_native with decode steps of its own; sliding windows, encoders and half precision go the loop's way."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._step: DecodeStep | None = None
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="attention")

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._step = None
        is_plain = forward_batch.encoder_lens is None and not self.use_sliding_window_kv_pool
        if is_plain and forward_batch.forward_mode.is_decode() and len(forward_batch.seq_lens):
            table, threads = self.req_to_token_pool.req_to_token, torch.get_num_threads()
            self._step = DecodeStep.of(table, forward_batch.req_pool_indices, forward_batch.seq_lens, threads)

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        pool, step = self.token_to_kv_pool, self._step
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        has_window = layer.sliding_window_size is not None and layer.sliding_window_size > -1
        is_float = q.dtype == keys.dtype == values.dtype == torch.float32
        if step is None or has_window or layer.is_cross_attention or not is_float:
            looped: Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            return looped
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim).contiguous()
        output = query.new_empty(len(query), layer.tp_q_head_num, layer.v_head_dim)
        arrays = (query.numpy(), keys.numpy(), values.numpy(), step.table, step.requests, step.lengths)
        scale = np.float32(layer.scaling)

        def run(rows: tuple[int, int]) -> None:
            attend(*arrays, scale, output.numpy(), rows)

        if len(step.parts) == 1:
            run(step.parts[0])
        else:
            list(self._threads.map(run, step.parts))  # list: an exception of a thread is raised here
        return output.flatten(1)
