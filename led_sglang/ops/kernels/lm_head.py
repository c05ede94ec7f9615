"""Rows through the LM head in one Triton kernel: no (rows, V) logits of latent rows.

Which latent rows matter is known only on the device. One kernel puts them behind the final rows, without gaps, and the
next multiplies: its grid is sized for all of them, and blocks beyond their count return at once. So shapes are fixed,
nothing waits for the host, and a CUDA graph can hold it. Blocks that read the same part of the weight run side by side,
so that it comes from memory once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import BATCH_SIZES, size_up, tanh
from led_sglang.ops.types import Head, KnownLse

BLOCK_COPY = 1024


class Tile(NamedTuple):
    """What one program multiplies. Hopper's matrix instructions (wgmma) begin at 64 rows."""

    rows: int
    vocab: int
    row_bytes: int  # of a row's hidden dimensions at once
    warps: int
    stages: int


# Chosen by what the compiler makes of them for Hopper (benchmarks/results/gpu_build.jsonl); not timed yet.
SMALL_TILE = Tile(rows=64, vocab=128, row_bytes=128, warps=4, stages=4)
LARGE_TILE = Tile(rows=128, vocab=256, row_bytes=128, warps=8, stages=4)


def tile_of(num_rows: int, head: Head) -> Tile:
    """For so many rows; a batch-invariant head has one tile, since a row's sum is made of sums over tiles."""
    is_many = num_rows > SMALL_TILE.rows or head.is_batch_invariant
    return LARGE_TILE if is_many and head.weight.dtype.itemsize <= 2 else SMALL_TILE


@triton.jit
def is_missing(explore_mask, has_lse, rows, mask, has_known):  # type: ignore[no-untyped-def]
    """Whether the sums of a row's latents are to be computed: needed, and not known already."""
    is_needed = tl.load(explore_mask + rows, mask=mask, other=0) != 0
    return is_needed & (tl.load(has_lse + rows, mask=mask & (has_known != 0), other=0) == 0)


@triton.jit(do_not_specialize=["num_final", "num_layers", "num_batch", "rows_per_layer", "has_known"])  # type: ignore[untyped-decorator]
def gather_kernel(  # type: ignore[no-untyped-def]
    final,  # (num_final, H), contiguous
    latents,  # (J, B, H), of a contiguous (J, rows_per_layer, H)
    explore_mask,  # (B,) bool
    has_lse,  # (B,) bool, where has_known
    tau,  # (B,) float32
    states,  # (num_final + J B, H), written: the final rows, then layer by layer the latents that are missing
    taus,  # (num_final + J B,) float32, written: theirs
    count,  # (1,) int32, written: how many that are
    num_final,
    num_layers,
    num_batch,
    hidden,
    rows_per_layer,  # of the latents' buffer, which holds more rows than the batch
    has_known,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """states = [final rows; latents of the rows that are needed and not known, layer by layer], without gaps.

    A program: one row of `states`, H elements copied BLOCK_H at a time; it counts the missing rows of the whole batch.
    """
    row_idx = tl.program_id(0)
    batch = tl.arange(0, BLOCK_BATCH)
    lse_missing = is_missing(explore_mask, has_lse, batch, batch < num_batch, has_known).to(tl.int32)
    num_missing = tl.sum(lse_missing, 0)
    num_gathered = num_final + num_layers * num_missing
    if row_idx == 0:
        tl.store(count, num_gathered)
    if row_idx < num_gathered:
        source = final + row_idx.to(tl.int64) * hidden
        if row_idx >= num_final:
            layer, rank = (row_idx - num_final) // num_missing, (row_idx - num_final) % num_missing
            row = tl.sum((tl.cumsum(lse_missing, 0) <= rank).to(tl.int64), 0)
            source = latents + (layer.to(tl.int64) * rows_per_layer + row) * hidden
            tl.store(taus + row_idx, tl.load(tau + row))
        for start in range(0, hidden, BLOCK_H):
            dims = start + tl.arange(0, BLOCK_H)
            state = tl.load(source + dims, mask=dims < hidden)
            tl.store(states + row_idx.to(tl.int64) * hidden + dims, state, mask=dims < hidden)


@triton.jit(do_not_specialize=["num_final"])  # type: ignore[untyped-decorator]
def head_kernel(  # type: ignore[no-untyped-def]
    states,  # (N, H): final rows, then latents
    taus,  # (N,) float32, of the latents
    count,  # (1,) int32: how many of the rows are real
    weight,  # (num_columns, H)
    bias,  # (num_vocab,)
    final_logits,  # (num_final, num_columns), written
    sums,  # (N, num_tiles) float32, written for latents: log-sum-exp over one tile of the vocabulary
    num_final,
    num_columns,  # rows of the weight
    num_vocab,  # of them real vocabulary
    num_tiles,
    hidden,
    stride_weight,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """final_logits = x W^T of final rows; sums[n, tile] = log sum_v exp(softcap(scale (x W^T + b)) / tau) of latents.

    A program: BLOCK_N rows by BLOCK_V columns of the vocabulary, float32 in registers, over H in steps of BLOCK_H.
    Blocks beyond `count` return at once; those of one tile run side by side, so that its part of W is read once.
    """
    block, tile = tl.program_id(0), tl.program_id(1)
    num_rows = tl.load(count)
    if block * BLOCK_N < num_rows:
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        ids = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        is_row, is_column, dims = rows < num_rows, ids < num_columns, tl.arange(0, BLOCK_H)
        state_at = states + rows[:, None].to(tl.int64) * hidden + dims[None, :]
        weight_at = weight + ids[None, :].to(tl.int64) * stride_weight + dims[:, None]
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for start in range(0, hidden, BLOCK_H):
            is_dim = dims < hidden - start
            x = tl.load(state_at + start, mask=is_row[:, None] & is_dim[None, :], other=0.0)
            w = tl.load(weight_at + start, mask=is_column[None, :] & is_dim[:, None], other=0.0)
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        if block * BLOCK_N < num_final:
            logits_at = final_logits + rows[:, None].to(tl.int64) * num_columns + ids[None, :]
            tl.store(logits_at, logits, mask=(rows < num_final)[:, None] & is_column[None, :])
        if (block + 1) * BLOCK_N > num_final:
            is_token = ids < num_vocab
            if HAS_BIAS:
                logits += tl.load(bias + ids, mask=is_token, other=0.0).to(tl.float32)[None, :]
            logits *= scale
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            is_latent = is_row & (rows >= num_final)
            logits *= (1.0 / tl.load(taus + rows, mask=is_latent, other=1.0))[:, None]
            logits = tl.where(is_token[None, :], logits, float("-inf"))
            tl.store(sums + rows.to(tl.int64) * num_tiles + tile, log_sum_exp(logits), mask=is_latent)


@triton.jit
def log_sum_exp(values):  # type: ignore[no-untyped-def]
    """Over the last axis. A row of nothing but -inf gives -inf, where exp(-inf - -inf) would be NaN."""
    peak = tl.max(values, 1)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    return peak + tl.log(tl.sum(tl.exp(values - shift[:, None]), 1))


@triton.jit(do_not_specialize=["num_final", "num_batch", "num_tiles", "stride_known", "stride_layer", "has_known"])  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    sums,  # (num_final + J B, num_tiles) float32
    explore_mask,  # (B,) bool
    has_lse,  # (B,) bool, where has_known
    known,  # (J, B) float32, where has_known
    lse,  # (J, B) float32, written
    num_final,
    num_batch,
    num_tiles,
    stride_known,
    stride_layer,
    has_known,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """lse[j, b] = log sum_tile exp(sums[row of (j, b), tile]) where it was missing, what is known elsewhere.

    A program: one row of the batch in one layer, BLOCK_TILES sums.
    """
    row, layer = tl.program_id(0), tl.program_id(1)
    batch = tl.arange(0, BLOCK_BATCH)
    lse_missing = is_missing(explore_mask, has_lse, batch, batch < num_batch, has_known).to(tl.int32)
    if tl.sum(tl.where(batch == row, lse_missing, 0), 0) != 0:
        rank = tl.sum(tl.where(batch < row, lse_missing, 0), 0)
        row_idx = num_final + layer * tl.sum(lse_missing, 0) + rank
        tiles = tl.arange(0, BLOCK_TILES)
        parts = tl.load(sums + row_idx.to(tl.int64) * num_tiles + tiles, mask=tiles < num_tiles, other=float("-inf"))
        result = tl.sum(log_sum_exp(parts[None, :]), 0)
    else:
        result = tl.load(known + layer * stride_known + row, mask=has_known != 0, other=0.0)
    tl.store(lse + layer * stride_layer + row, result)


def most_tiles(num_columns: int) -> int:
    """A power of two that holds the number of tiles of either kind."""
    width = min(SMALL_TILE.vocab, LARGE_TILE.vocab)
    return triton.next_power_of_2(triton.cdiv(num_columns, width))  # type: ignore[no-any-return]


def is_interpreted() -> bool:
    """Triton's interpreter (TRITON_INTERPRET=1) runs kernels on CPU tensors, slowly."""
    return bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class LatentRows:
    """Latent rows of which some are needed: their hidden states, temperatures and what is known already."""

    hidden: Tensor  # (J, B, H), stride 1 in H
    explore_mask: Tensor  # (B,) bool
    tau: Tensor  # (B,) float32
    known_lse: KnownLse | None = None


def head_sums(final: Tensor | None, latents: LatentRows, head: Head, lse: Tensor) -> Tensor:
    """Write (J, B) float32 `lse`, and return the final rows' product: (B', H) or None -> (B', V_shard).

    An entry is log sum_v exp(logit_v / tau) over this rank's rows where needed, what is known where it is,
    and else any value. The product is in the weight's dtype.
    """
    hidden, known_lse = latents.hidden, latents.known_lse
    weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    stride_layer, stride_row, stride_dim = hidden.stride()
    if stride_dim != 1 or stride_row != hidden.shape[2] or stride_layer % stride_row:
        hidden = hidden.contiguous()  # whose strides along an axis of length 1 may still be any
    (num_layers, num_batch, width), num_columns = hidden.shape, len(weight)
    num_final = 0 if final is None else len(final)
    final = hidden[0] if final is None else final.contiguous()
    num_rows = num_final + num_layers * num_batch
    tile, device = tile_of(num_rows, head), hidden.device
    num_tiles = triton.cdiv(num_columns, tile.vocab)
    states, logits = weight.new_empty(num_rows, width), weight.new_empty(num_final, num_columns)
    taus, sums = torch.empty(num_rows, device=device), torch.empty(num_rows, num_tiles, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    explore_mask, tau = latents.explore_mask.contiguous(), latents.tau.float().contiguous()
    has_lse, known = (explore_mask, lse) if known_lse is None else (known_lse.has_lse.contiguous(), known_lse.lse)
    has_known, block_batch = int(known_lse is not None), size_up(num_batch, BATCH_SIZES)
    if not num_rows:
        return logits
    gather_kernel[(num_rows,)](
        final, hidden, explore_mask, has_lse, tau, states, taus, count, num_final, num_layers, num_batch, width,
        hidden.stride(0) // width, has_known, BLOCK_BATCH=block_batch, BLOCK_H=BLOCK_COPY,
    )  # fmt: skip
    head_kernel[(triton.cdiv(num_rows, tile.rows), num_tiles)](
        states,
        taus,
        count,
        weight,
        weight if head.bias is None else head.bias,
        logits,
        sums,
        num_final,
        num_columns,
        head.num_rows,
        num_tiles,
        width,
        weight.stride(0),
        head.scale,
        float(head.softcap or 1.0),
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        # The interpreter would multiply bfloat16's bit patterns as integers.
        WIDEN=weight.dtype == torch.bfloat16 and is_interpreted(),
        BLOCK_N=tile.rows,
        BLOCK_V=tile.vocab,
        BLOCK_H=tile.row_bytes // weight.element_size(),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    merge_kernel[(num_batch, num_layers)](
        sums, explore_mask, has_lse, known, lse, num_final, num_batch, num_tiles, known.stride(0),
        lse.stride(0), has_known, BLOCK_BATCH=block_batch, BLOCK_TILES=most_tiles(num_columns),
    )  # fmt: skip
    return logits


def latent_lse(latents: Tensor, head: Head, tau: Tensor, explore_mask: Tensor, known_lse: KnownLse | None) -> Tensor:
    """As `led_sglang.ops.backends.lm_head.complete_lse`, in fixed shapes: (J, N)."""
    if known_lse is not None and known_lse.is_complete:
        return known_lse.lse[: len(latents)].where(known_lse.has_lse, torch.nan)
    lse = torch.empty(latents.shape[:2], device=latents.device)
    head_sums(None, LatentRows(latents, explore_mask, tau.flatten(), known_lse), head, lse)
    return lse
