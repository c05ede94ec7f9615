"""Rows through the LM head in one Triton kernel: no (rows, V) logits of latent rows.

Which latent rows matter is known only on the device. They are numbered there behind the final rows, without gaps, and
read where they lie. As many programs as the GPU runs at once share the blocks of these rows and the tiles of the
vocabulary. So shapes are fixed, nothing waits for the host, a CUDA graph can hold it, and rows that are not there have
no program. Blocks of rows that read the same tile run side by side, so that it comes from memory once.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import aligned, tanh
from led_sglang.ops.types import Head, KnownLse

BLOCK_COUNT = 256  # rows of the batch that a program looks at at once
COUNTS = ["num_final", "num_batch", "num_sums", "has_known"]  # one code for any of them
NUM_SMS = 132  # of an H200; of the GPU at hand where there is one


class Tile(NamedTuple):
    """What one program multiplies. Hopper's matrix instructions (wgmma) begin at 64 rows."""

    rows: int
    vocab: int
    row_bytes: int  # of a row's hidden dimensions at once
    warps: int
    stages: int
    resident: int  # programs that an SM holds, by their shared memory


# Chosen by what the compiler makes of them for Hopper (benchmarks/results/gpu_build.jsonl); not timed yet.
SMALL_TILE = Tile(rows=64, vocab=128, row_bytes=128, warps=4, stages=4, resident=2)
LARGE_TILE = Tile(rows=128, vocab=256, row_bytes=128, warps=8, stages=4, resident=1)


def tile_of(num_rows: int, head: Head) -> Tile:
    """For so many rows; a batch-invariant head has one tile, since a row's sum is made of sums over tiles."""
    is_many = num_rows > SMALL_TILE.rows or head.is_batch_invariant
    return LARGE_TILE if is_many and head.weight.dtype.itemsize <= 2 else SMALL_TILE


@triton.jit
def is_missing(explore_mask, has_lse, rows, mask, has_known):  # type: ignore[no-untyped-def]
    """Whether the sums of a row's latents are to be computed: needed, and not known already."""
    is_needed = tl.load(explore_mask + rows, mask=mask, other=0) != 0
    return is_needed & (tl.load(has_lse + rows, mask=mask & (has_known != 0), other=0) == 0)


@triton.jit  # type: ignore[untyped-decorator]
def list_missing(listed, ranks, explore_mask, has_lse, num_batch, has_known, BLOCK_COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the rows of the batch that are missing, in order, and each row's rank among them; return their number.

    Every program writes all of it, for itself: all write the same.
    """
    found = 0
    for start in range(0, num_batch, BLOCK_COUNT):
        batch = start + tl.arange(0, BLOCK_COUNT)
        is_row = batch < num_batch
        lse_missing = is_missing(explore_mask, has_lse, batch, is_row, has_known)
        upto = tl.cumsum(lse_missing.to(tl.int32), 0)
        tl.store(listed + found + upto - 1, batch, mask=lse_missing)
        tl.store(ranks + batch, tl.where(lse_missing, found + upto - 1, -1), mask=is_row)
        found += tl.max(upto, 0)
    tl.store(ranks + num_batch, found)
    tl.debug_barrier()
    return found


@triton.jit(do_not_specialize=[*COUNTS, "num_layers", "rows_per_layer"])  # type: ignore[untyped-decorator]
def head_kernel(  # type: ignore[no-untyped-def]
    final,  # (num_final, H), contiguous
    latents,  # (J, B, H), of a contiguous (J, rows_per_layer, H)
    explore_mask,  # (B,) bool
    has_lse,  # (B,) bool, where has_known
    tau,  # (B,) float32
    listed,  # (B,) int32, written: the rows that are missing
    ranks,  # (B + 1,) int32, written: each row's rank among them, -1 where it is not missing; their number
    weight,  # (num_columns, H)
    bias,  # (num_vocab,)
    final_logits,  # (num_final, num_columns), written
    sums,  # (num_tiles, N) float32, written for latents: log-sum-exp over one tile of the vocabulary
    num_final,
    num_layers,
    num_batch,
    rows_per_layer,  # of the latents' buffer, which holds more rows than the batch
    has_known,
    num_columns,  # rows of the weight
    num_vocab,  # of them real vocabulary
    num_tiles,
    num_sums,  # num_final + J B
    hidden,
    stride_weight,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    IS_EVEN: tl.constexpr,  # H is a multiple of BLOCK_H
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,
):
    """final_logits = x W^T of final rows; sums[tile, n] = log sum_v exp(softcap(scale (x W^T + b)) / tau) of latents.

    Row n is final row n, and behind these, layer by layer, a latent row that is needed and not known. A program: some
    pieces of BLOCK_N rows by BLOCK_V columns of the vocabulary, float32 in registers, over H in steps of BLOCK_H.
    Pieces of one tile are done side by side, so that its part of W is read once.
    """
    num_missing = list_missing(listed, ranks, explore_mask, has_lse, num_batch, has_known, BLOCK_COUNT)
    num_rows = num_final + num_layers * num_missing
    num_blocks, over = tl.cdiv(num_rows, BLOCK_N), tl.maximum(num_missing, 1)
    # Nothing is kept in registers from piece to piece: it would not fit beside the sums.
    for item in tl.range(tl.program_id(0), num_blocks * num_tiles, tl.num_programs(0), disable_licm=True):
        block, tile = item % num_blocks, item // num_blocks
        rows, dims = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
        ids = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        is_row, is_column, is_latent = rows < num_rows, ids < num_columns, (rows >= num_final) & (rows < num_rows)
        latent = tl.where(is_latent, rows - num_final, 0)
        batch_row = tl.load(listed + latent % over, mask=is_latent, other=0)
        source = (latent // over).to(tl.int64) * rows_per_layer + batch_row
        state_of = tl.where(is_latent, latents + source * hidden, final + rows.to(tl.int64) * hidden)
        state_at = tl.multiple_of(state_of, 16)[:, None] + dims[None, :]
        weight_at = weight + ids[None, :].to(tl.int64) * stride_weight + dims[:, None]
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for start in range(0, hidden, BLOCK_H):
            is_dim = (dims < hidden - start) | IS_EVEN
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
            logits *= (1.0 / tl.load(tau + batch_row, mask=is_latent, other=1.0))[:, None]
            logits = tl.where(is_token[None, :], logits, float("-inf"))
            tl.store(sums + tile.to(tl.int64) * num_sums + rows, log_sum_exp(logits), mask=is_latent)


@triton.jit
def log_sum_exp(values):  # type: ignore[no-untyped-def]
    """Over the last axis. A row of nothing but -inf gives -inf, where exp(-inf - -inf) would be NaN."""
    peak = tl.max(values, 1)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    return peak + tl.log(tl.sum(tl.exp(values - shift[:, None]), 1))


@triton.jit(do_not_specialize=[*COUNTS, "num_tiles", "stride_known", "stride_layer"])  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    sums,  # (num_tiles, num_final + J B) float32
    ranks,  # (B + 1,) int32
    known,  # (J, B) float32, where has_known
    lse,  # (J, B) float32, written
    num_final,
    num_batch,
    num_tiles,
    num_sums,
    stride_known,
    stride_layer,
    has_known,
    BLOCK_TILES: tl.constexpr,
):
    """lse[j, b] = log sum_tile exp(sums[tile, row of (j, b)]) where it was missing, what is known elsewhere.

    A program: one row of the batch in one layer, BLOCK_TILES sums.
    """
    row, layer = tl.program_id(0), tl.program_id(1)
    rank, num_missing = tl.load(ranks + row), tl.load(ranks + num_batch)
    result = tl.load(known + layer * stride_known + row, mask=has_known != 0, other=0.0)
    if rank >= 0:
        tiles = tl.arange(0, BLOCK_TILES)
        at = sums + tiles.to(tl.int64) * num_sums + num_final + layer * num_missing + rank
        result = tl.sum(log_sum_exp(tl.load(at, mask=tiles < num_tiles, other=float("-inf"))[None, :]), 0)
    tl.store(lse + layer * stride_layer + row, result)


def most_tiles(num_columns: int) -> int:
    """A power of two that holds the number of tiles of either kind."""
    width = min(SMALL_TILE.vocab, LARGE_TILE.vocab)
    return triton.next_power_of_2(triton.cdiv(num_columns, width))  # type: ignore[no-any-return]


@cache
def num_sms(device: torch.device) -> int:
    """Of the GPU; of an H200 where kernels are interpreted, or compiled only."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else NUM_SMS


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
    logits, sums = weight.new_empty(num_final, num_columns), torch.empty(num_tiles, num_rows, device=device)
    explore_mask, tau = latents.explore_mask.contiguous(), latents.tau.float().contiguous()
    has_lse, known = (explore_mask, lse) if known_lse is None else (known_lse.has_lse.contiguous(), known_lse.lse)
    has_known = int(known_lse is not None)
    if not num_rows:
        return logits
    listed, ranks = aligned(2, num_batch + 1, torch.int32, device)
    most_programs = triton.cdiv(num_rows, tile.rows) * num_tiles
    head_kernel[(min(most_programs, num_sms(device) * tile.resident),)](
        final,
        hidden,
        explore_mask,
        has_lse,
        tau,
        listed,
        ranks,
        weight,
        weight if head.bias is None else head.bias,
        logits,
        sums,
        num_final,
        num_layers,
        num_batch,
        hidden.stride(0) // width,
        has_known,
        num_columns,
        head.num_rows,
        num_tiles,
        num_rows,
        width,
        weight.stride(0),
        head.scale,
        float(head.softcap or 1.0),
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        # The interpreter would multiply bfloat16's bit patterns as integers.
        WIDEN=weight.dtype == torch.bfloat16 and is_interpreted(),
        IS_EVEN=width % (tile.row_bytes // weight.element_size()) == 0,
        BLOCK_N=tile.rows,
        BLOCK_V=tile.vocab,
        BLOCK_H=tile.row_bytes // weight.element_size(),
        BLOCK_COUNT=BLOCK_COUNT,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    merge_kernel[(num_batch, num_layers)](
        sums, ranks, known, lse, num_final, num_batch, num_tiles, num_rows, known.stride(0), lse.stride(0), has_known,
        BLOCK_TILES=most_tiles(num_columns),
    )  # fmt: skip
    return logits


def latent_lse(latents: Tensor, head: Head, tau: Tensor, explore_mask: Tensor, known_lse: KnownLse | None) -> Tensor:
    """As `led_sglang.ops.backends.lm_head.complete_lse`, in fixed shapes: (J, N)."""
    if known_lse is not None and known_lse.is_complete:
        return known_lse.lse[: len(latents)].where(known_lse.has_lse, torch.nan)
    lse = torch.empty(latents.shape[:2], device=latents.device)
    head_sums(None, LatentRows(latents, explore_mask, tau.flatten(), known_lse), head, lse)
    return lse
