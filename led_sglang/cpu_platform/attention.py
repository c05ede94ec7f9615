"""Attention of decode steps straight from the paged cache, instead of torch_native's loop over sequences.

The loop costs one `scaled_dot_product_attention` a sequence and layer, copies of its keys and values included; here one
compiled function reads the slots of every sequence in place. A row is computed alone, in an order that depends on
nothing but its own length: what else is in the batch does not change a bit of it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from led_sglang.cpu_platform.paged_attention import attend

__all__ = ["PagedAttention"]

MIN_KEYS_A_THREAD = 2048  # below, handing work over costs more than it saves
READABLE = (torch.float32, torch.bfloat16)


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
        bounds = sorted({0, *(int(bound) + 1 for bound in cuts), len(keys_before)})
        return cls(table.numpy(), requests.long().numpy(), lengths.long().numpy(), tuple(pairwise(bounds)))


class PagedAttention(TorchNativeAttnBackend):
    """torch_native with decode steps of its own; sliding windows, encoders and float16 take the loop."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._step: DecodeStep | None = None
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="attention")

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Of rows that SGLang adds to a batch, so that data-parallel ranks have as many: they attend to one token."""
        return 1

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
        is_readable = q.dtype == keys.dtype == values.dtype and q.dtype in READABLE
        if step is None or has_window or layer.is_cross_attention or not is_readable:
            looped: Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            return looped
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim).float().contiguous()
        output = query.new_empty(len(query), layer.tp_q_head_num, layer.v_head_dim)
        arrays = (query.numpy(), as_numpy(keys), as_numpy(values), step.table, step.requests, step.lengths)
        scale = np.float32(layer.scaling)

        def run(rows: tuple[int, int]) -> None:
            attend(*arrays, scale, output.numpy(), rows)

        if len(step.parts) == 1:
            run(step.parts[0])
        else:
            list(self._threads.map(run, step.parts))  # list: an exception of a thread is raised here
        return output.flatten(1).to(q.dtype)


def as_numpy(cache: Tensor) -> Any:
    """Of float32, or of the bits of bfloat16, which numpy does not have."""
    return cache.numpy() if cache.dtype == torch.float32 else cache.view(torch.uint16).numpy()
