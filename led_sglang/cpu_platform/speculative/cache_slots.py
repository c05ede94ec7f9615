"""Slots of the KV cache that a speculative step reads and writes, as SGLang's kernels of the same names find them.

`table` below is SGLang's req_to_token: (requests, context) int32, the slot of every position of a request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from led_sglang.jit import jit

__all__ = [
    "assign_draft_cache_locs_contiguous",
    "assign_extend_cache_locs",
    "assign_req_to_token_pool",
    "fill_accept_out_cache_loc",
    "fill_bonus_tokens",
    "fill_front_out_cache_loc",
]


@jit
def _read_spans(table: Any, rows: Any, starts: Any, ends: Any, packed: Any) -> None:
    """packed = table[rows[i], starts[i]:ends[i]] of each i, one behind the other."""
    filled = 0
    for i in range(len(rows)):
        for column in range(starts[i], ends[i]):
            packed[filled] = table[rows[i], column]
            filled += 1


@jit
def _write_spans(table: Any, rows: Any, starts: Any, ends: Any, packed: Any) -> None:
    """The inverse of `_read_spans`."""
    used = 0
    for i in range(len(rows)):
        for column in range(starts[i], ends[i]):
            table[rows[i], column] = packed[used]
            used += 1


def _arrays(table: Tensor, *indices: Tensor) -> tuple[Any, ...]:
    return (table.numpy(), *(index.long().numpy() for index in indices))


def assign_extend_cache_locs(
    *,
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    batch_size: int,
    draft_token_num: int,
    device: Any,
) -> Tensor:
    """The slots of positions start_offset to end_offset of each request: (batch_size * draft_token_num,) int64."""
    slots = torch.empty(batch_size * draft_token_num, dtype=torch.int64)
    _read_spans(*_arrays(req_to_token, req_pool_indices, start_offset, end_offset), slots.numpy())
    return slots


def assign_draft_cache_locs_contiguous(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    topk: int,
    num_cols: int,
    positions: Tensor | None = None,
    mrope: Tensor | None = None,
) -> None:
    """Write the topk * num_cols slots behind each sequence into out_cache_loc, as one row.

    positions (batch * topk,) and mrope (3, batch * topk), where given, become the sequence's length.
    """
    starts = seq_lens.long()
    _read_spans(*_arrays(req_to_token, req_pool_indices, starts, starts + topk * num_cols), out_cache_loc.numpy())
    for output in (positions, mrope):
        if output is not None:
            output.copy_(starts.repeat_interleave(topk))


def assign_req_to_token_pool(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Write newly allocated slots into the table: those of request i to positions start_offset[i] to end_offset[i]."""
    _write_spans(*_arrays(req_to_token, req_pool_indices, start_offset, end_offset), out_cache_loc.numpy())


def fill_front_out_cache_loc(num_front: Tensor, out_cache_loc: Tensor, front_out_cache_loc: Tensor) -> None:
    """Pack the first num_front[i] slots of row i of out_cache_loc (batch, width); the rest of the output stays."""
    num_rows = num_front.numel()
    rows, starts = torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64)
    _read_spans(*_arrays(out_cache_loc.view(num_rows, -1), rows, starts, num_front), front_out_cache_loc.numpy())


def fill_accept_out_cache_loc(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor, size: int
) -> None:
    """Pack the slots of the accepted nodes, accept_index >= 0; the rest of the output stays."""
    accepted = accept_index.flatten()
    slots = out_cache_loc[accepted[accepted >= 0].long()]
    accept_out_cache_loc[: len(slots)] = slots


def fill_bonus_tokens(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int, batch_size: int
) -> None:
    """bonus_tokens (batch,): the last accepted token of each row of accept_tokens (batch * accept_stride,)."""
    last = accept_lens.long().view(-1, 1) - 1
    bonus_tokens.copy_(accept_tokens.view(batch_size, accept_stride).gather(1, last).view(-1))
