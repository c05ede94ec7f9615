"""Rows through the LM head in one Triton kernel: no (rows, V) logits of latent rows.

Which latent rows matter is known only on the device. They are numbered there behind the final rows, without gaps, and
read where they lie. As many programs as the GPU runs at once share the blocks of these rows and the tiles of the
vocabulary. So shapes are fixed, nothing waits for the host, a CUDA graph can hold it, and rows that are not there have
no program. Blocks of rows that read the same tile run side by side, so that it comes from memory once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import aligned, is_interpreted, list_missing, num_sms, tanh
from led_sglang.ops.types import Head, KnownLse

STATE_UNIT = tl.constexpr(64.0)  # of bfloat16 states as float16: exact between 4e-3 and 4e6
# Latent rows, needed or not, up to which a copy in 8 bits is read: a tenth of them is one block of rows. Of more blocks
# each decodes the whole copy for itself, and the weight is the faster one.
COPY_ROWS = 640
BLOCK_COUNT = 256  # rows of the batch that a program looks at at once
COUNTS = ["num_final", "num_batch", "num_sums", "has_known"]  # one code for any of them


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


def tile_of(num_rows: int, head: Head, is_copy: bool = False) -> Tile:
    """For so many rows; a batch-invariant head has one tile, since a row's sum is made of sums over tiles.

    is_copy: the small one, whose programs decode while another one on their SM multiplies.
    """
    is_many = num_rows > SMALL_TILE.rows or head.is_batch_invariant
    return LARGE_TILE if is_many and not is_copy and head.weight.dtype.itemsize <= 2 else SMALL_TILE


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
    row_scale,  # (num_columns,) float32, where IS_COPY
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
    IS_COPY: tl.constexpr,  # weight: codes of eight bits, without final rows
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
            elif IS_COPY:
                x, w = operands(x, w)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        if block * BLOCK_N < num_final:
            logits_at = final_logits + rows[:, None].to(tl.int64) * num_columns + ids[None, :]
            tl.store(logits_at, logits, mask=(rows < num_final)[:, None] & is_column[None, :])
        if (block + 1) * BLOCK_N > num_final:
            is_token = ids < num_vocab
            if IS_COPY:
                unit = STATE_UNIT if latents.dtype.element_ty == tl.bfloat16 else 1.0
                logits *= unit * tl.load(row_scale + ids, mask=is_token, other=0.0)[None, :]
            if HAS_BIAS:
                logits += tl.load(bias + ids, mask=is_token, other=0.0).to(tl.float32)[None, :]
            logits *= scale
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            logits *= (1.0 / tl.load(tau + batch_row, mask=is_latent, other=1.0))[:, None]
            logits = tl.where(is_token[None, :], logits, float("-inf"))
            tl.store(sums + tile.to(tl.int64) * num_sums + rows, log_sum_exp(logits), mask=is_latent)


@triton.jit
def operands(x, w):  # type: ignore[no-untyped-def]
    """Of a product with codes of eight bits: float16, into which a GPU decodes two of them in one instruction.

    A bfloat16 state keeps its bits; from 4 million on it is infinite, and its row the engine's.
    """
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.float32) * (1.0 / STATE_UNIT)).to(tl.float16)
    return x, w.to(x.dtype)


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
    is_few = hidden.shape[0] * hidden.shape[1] <= COPY_ROWS or head.is_batch_invariant
    copy = head.lse_copy if final is None and is_few else None
    weight = copy.codes if copy is not None else head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    stride_layer, stride_row, stride_dim = hidden.stride()
    if stride_dim != 1 or stride_row != hidden.shape[2] or stride_layer % stride_row:
        hidden = hidden.contiguous()  # whose strides along an axis of length 1 may still be any
    (num_layers, num_batch, width), num_columns = hidden.shape, len(weight)
    num_final = 0 if final is None else len(final)
    final = hidden[0] if final is None else final.contiguous()
    num_rows = num_final + num_layers * num_batch
    tile, device = tile_of(num_rows, head, copy is not None), hidden.device
    block_hidden = tile.row_bytes // hidden.element_size()
    num_tiles = triton.cdiv(num_columns, tile.vocab)
    logits, sums = head.weight.new_empty(num_final, num_columns), torch.empty(num_tiles, num_rows, device=device)
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
        weight if copy is None else copy.scale,
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
        IS_COPY=copy is not None,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        # The interpreter would multiply bfloat16's bit patterns as integers.
        WIDEN=weight.dtype == torch.bfloat16 and is_interpreted(),
        IS_EVEN=width % block_hidden == 0,
        BLOCK_N=tile.rows,
        BLOCK_V=tile.vocab,
        BLOCK_H=block_hidden,
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
