"""Rows through the LM head in one Triton kernel: no (rows, V) logits of latent rows.

Which latent rows matter is known only on the device. They are compacted there into a list with a count; the grid is
sized for all of them, and the blocks beyond the count return at once. So shapes are fixed, nothing waits for the host,
and a CUDA graph can hold it. In the one-pass form the final rows' blocks stand before the latents' ones: blocks that
read the same part of the weight run side by side, so that it comes from memory once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops import head as torch_head
from led_sglang.ops.head import across_ranks
from led_sglang.ops.triton_candidates import candidate_logits, tanh
from led_sglang.ops.types import Head, Ridden

BLOCK_ROWS = 32
BLOCK_VOCAB = 128
BLOCK_HIDDEN = 64
TILES_PER_PROGRAM = 8  # vocabulary tiles that one program walks before it writes its partial sums


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    states,  # (rows, H)
    rows,
    is_row,
    stride_state,
    weight,  # (V, H)
    ids,
    is_token,
    stride_weight,
    hidden,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WIDEN: tl.constexpr,
):
    logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, hidden, BLOCK_H):
        dims = start + tl.arange(0, BLOCK_H)
        is_dim = dims < hidden
        x = tl.load(
            states + rows[:, None] * stride_state + dims[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0
        )
        w = tl.load(
            weight + ids[None, :].to(tl.int64) * stride_weight + dims[:, None],
            mask=is_token[None, :] & is_dim[:, None],
            other=0.0,
        )
        if WIDEN:
            x, w = x.to(tl.float32), w.to(tl.float32)
        logits = tl.dot(x, w, logits, input_precision="ieee")
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def head_kernel(  # type: ignore[no-untyped-def]
    final,  # (num_final, H), where HAS_FINAL
    final_logits,  # (num_final, num_columns), where HAS_FINAL
    latents,  # (N, H)
    weight,  # (num_columns, H)
    bias,  # (num_vocab,)
    tau,  # (N,)
    order,  # (N,) int64: the latents to compute, those that matter first
    count,  # (1,) int64: how many matter
    partial,  # (num_parts, N) float32
    num_final,
    num_latents,
    num_columns,  # rows of the weight
    num_vocab,  # of them real vocabulary
    hidden,
    stride_final,
    stride_latent,
    stride_weight,
    scale,
    softcap,
    HAS_FINAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    TILES: tl.constexpr,
):
    block, part = tl.program_id(0), tl.program_id(1)
    if HAS_FINAL:
        num_final_blocks = tl.cdiv(num_final, BLOCK_N)
        if block < num_final_blocks:
            places = block * BLOCK_N + tl.arange(0, BLOCK_N)
            is_row = places < num_final
            rows = places.to(tl.int64)
            for tile in range(TILES):
                ids = (part * TILES + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
                is_column = ids < num_columns
                logits = _product(
                    final, rows, is_row, stride_final, weight, ids, is_column, stride_weight, hidden,
                    BLOCK_N, BLOCK_V, BLOCK_H, WIDEN,
                )  # fmt: skip
                tl.store(
                    final_logits + rows[:, None] * num_columns + ids[None, :],
                    logits,
                    mask=is_row[:, None] & is_column[None, :],
                )
        block -= num_final_blocks
    num_active = tl.load(count)
    if (block >= 0) & (block * BLOCK_N < num_active):
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = places < num_active
        rows = tl.load(order + places, mask=is_row, other=0)
        inverse_tau = 1.0 / tl.load(tau + rows, mask=is_row, other=1.0)
        largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        for tile in range(TILES):
            ids = (part * TILES + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
            is_token = ids < num_vocab
            logits = _product(
                latents, rows, is_row, stride_latent, weight, ids, is_token, stride_weight, hidden,
                BLOCK_N, BLOCK_V, BLOCK_H, WIDEN,
            )  # fmt: skip
            if HAS_BIAS:
                logits += tl.load(bias + ids, mask=is_token, other=0.0).to(tl.float32)[None, :]
            logits *= scale
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            logits = tl.where(is_token[None, :], logits * inverse_tau[:, None], float("-inf"))
            peak = tl.maximum(largest, tl.max(logits, 1))
            # A tile of nothing but padding leaves the peak at -inf; exp(-inf - -inf) would be NaN.
            shift = tl.where(peak == float("-inf"), 0.0, peak)
            total = total * tl.exp(largest - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
            largest = peak
        tl.store(partial + part * num_latents + rows, largest + tl.log(total), mask=is_row)


def is_interpreted() -> bool:
    """Triton's interpreter (TRITON_INTERPRET=1) runs kernels on CPU tensors, slowly."""
    return bool(triton.knobs.runtime.interpret)


def run(final: Tensor | None, latents: Tensor, needed: Tensor, head: Head, tau: Tensor) -> tuple[Tensor | None, Tensor]:
    """(B, H) or None, (N, H), (N,) bool, (N,) float32 -> (B, V_shard) in the weight's dtype, (N,) log-sum-exps.

    Where a latent is not needed its log-sum-exp is -inf.
    """
    weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    latents, states = latents.contiguous(), latents if final is None else final.to(weight.dtype).contiguous()
    num_final, num_latents, num_columns = 0 if final is None else len(final), len(latents), len(weight)
    num_parts = max(1, -(-num_columns // (BLOCK_VOCAB * TILES_PER_PROGRAM)))
    logits = weight.new_empty(num_final, num_columns)
    partial = torch.full((num_parts, num_latents), -torch.inf, device=latents.device)
    num_blocks = -(-num_final // BLOCK_ROWS) - (-num_latents // BLOCK_ROWS)
    if num_blocks:
        head_kernel[(num_blocks, num_parts)](
            states,
            logits,
            latents,
            weight,
            weight if head.bias is None else head.bias,
            tau,
            needed.int().argsort(descending=True, stable=True),
            needed.sum().view(1),
            partial,
            num_final,
            num_latents,
            num_columns,
            head.num_rows,
            latents.shape[1],
            states.stride(0),
            latents.stride(0),
            weight.stride(0),
            head.scale,
            head.softcap or 1.0,
            HAS_FINAL=final is not None,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            # The interpreter would multiply bfloat16's bit patterns as integers.
            WIDEN=weight.dtype == torch.bfloat16 and is_interpreted(),
            BLOCK_N=BLOCK_ROWS,
            BLOCK_V=BLOCK_VOCAB,
            BLOCK_H=BLOCK_HIDDEN,
            TILES=TILES_PER_PROGRAM,
        )
    return (None if final is None else logits), partial.logsumexp(0)


def log_normalizers(latents: Tensor, needed: Tensor, head: Head, tau: Tensor) -> Tensor:
    """log sum_v exp(logit_v / tau) of the latents that are needed: (N, H), (N,) bool, (N,) -> (N,); 0 elsewhere."""
    _, normalizers = run(None, latents, needed, head, tau)
    return normalizers.where(needed, 0.0)


def head_pass(hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, wanted: Tensor, normalizers: Tensor) -> Tensor:
    """As `led_sglang.ops.one_pass.head_pass`."""
    num_layers = len(latents)
    logits, sums = run(hidden, latents.flatten(0, 1), wanted.repeat(num_layers), head, tau.float().repeat(num_layers))
    normalizers.copy_(sums.view(normalizers.shape))
    assert logits is not None
    return logits


def latent_sums(
    latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, needed: Tensor, ridden: Ridden | None
) -> tuple[Tensor, Tensor]:
    """As `led_sglang.ops.head.latent_sums`; rows that are not needed, (N,) bool, hold anything."""
    if head.project is not None:
        return torch_head.latent_sums(latents, candidate_ids, head, tau, ridden)
    logits = candidate_logits(latents, candidate_ids, head, tau, needed)
    return across_ranks(normalizers_of(latents, head, tau, needed, ridden), logits, head)


def normalizers_of(latents: Tensor, head: Head, tau: Tensor, needed: Tensor, ridden: Ridden | None) -> Tensor:
    """As `led_sglang.ops.head.known_normalizers`, in fixed shapes: (J, N)."""
    num_layers = len(latents)
    if ridden is not None and ridden.is_complete:
        return ridden.normalizers[:num_layers].where(ridden.rode, torch.nan)
    missing = needed if ridden is None else needed & ~ridden.rode
    flat_tau = tau.flatten().repeat(num_layers)
    normalizers = log_normalizers(latents.flatten(0, 1), missing.repeat(num_layers), head, flat_tau)
    normalizers = normalizers.view(latents.shape[:2])
    return normalizers if ridden is None else ridden.normalizers[:num_layers].where(ridden.rode, normalizers)
