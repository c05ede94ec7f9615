"""Latent rows through the LM head in one Triton kernel: log-sum-exp over vocabulary tiles, no (rows, V) logits.

Which rows explore is known only on the device. The rows are compacted there into a list with a count; the grid is sized
for all of them, and the blocks beyond the count return at once. So shapes are fixed, nothing waits for the host, and a
CUDA graph can hold it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.head import across_ranks, candidate_logits
from led_sglang.ops.types import Head

BLOCK_LATENTS = 32
BLOCK_VOCAB = 128
BLOCK_HIDDEN = 64
TILES_PER_PROGRAM = 8  # vocabulary tiles that one program walks before it writes its partial sums


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit  # type: ignore[untyped-decorator]
def log_sum_exp_kernel(  # type: ignore[no-untyped-def]
    latents,  # (N, H)
    weight,  # (V, H)
    bias,  # (V,)
    tau,  # (N,)
    order,  # (N,) int64: the rows to compute, those that matter first
    count,  # (1,) int64: how many matter
    partial,  # (num_parts, N) float32
    num_latents,
    num_vocab,
    hidden,
    stride_latent,
    stride_weight,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    TILES: tl.constexpr,
):
    block, part = tl.program_id(0), tl.program_id(1)
    num_active = tl.load(count)
    if block * BLOCK_N < num_active:
        places = block * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = places < num_active
        rows = tl.load(order + places, mask=is_row, other=0)
        inverse_tau = 1.0 / tl.load(tau + rows, mask=is_row, other=1.0)
        largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        for tile in range(TILES):
            ids = (part * TILES + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
            is_token = ids < num_vocab
            logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
            for start in range(0, hidden, BLOCK_H):
                dims = start + tl.arange(0, BLOCK_H)
                is_dim = dims < hidden
                x = tl.load(
                    latents + rows[:, None] * stride_latent + dims[None, :],
                    mask=is_row[:, None] & is_dim[None, :],
                    other=0.0,
                )
                w = tl.load(
                    weight + ids[None, :].to(tl.int64) * stride_weight + dims[:, None],
                    mask=is_token[None, :] & is_dim[:, None],
                    other=0.0,
                )
                logits = tl.dot(x, w, logits, input_precision="ieee")
            if HAS_BIAS:
                logits += tl.load(bias + ids, mask=is_token, other=0.0).to(tl.float32)[None, :]
            logits *= scale
            if HAS_SOFTCAP:
                logits = softcap * _tanh(logits / softcap)
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


def log_normalizers(latents: Tensor, needed: Tensor, head: Head, tau: Tensor) -> Tensor:
    """log sum_v exp(logit_v / tau) of the latents that are needed: (N, H), (N,) bool, (N,) -> (N,); 0 elsewhere."""
    num_latents, hidden = latents.shape
    latents, weight = latents.contiguous(), head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
    num_parts = max(1, -(-head.num_rows // (BLOCK_VOCAB * TILES_PER_PROGRAM)))
    partial = torch.full((num_parts, num_latents), -torch.inf, device=latents.device)
    order = needed.int().argsort(descending=True, stable=True)
    grid = (-(-num_latents // BLOCK_LATENTS), num_parts)
    log_sum_exp_kernel[grid](
        latents,
        weight,
        weight if head.bias is None else head.bias,
        tau,
        order,
        needed.sum().view(1),
        partial,
        num_latents,
        head.num_rows,
        hidden,
        latents.stride(0),
        weight.stride(0),
        head.scale,
        head.softcap or 1.0,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        BLOCK_N=BLOCK_LATENTS,
        BLOCK_V=BLOCK_VOCAB,
        BLOCK_H=BLOCK_HIDDEN,
        TILES=TILES_PER_PROGRAM,
    )
    return partial.logsumexp(0).where(needed, 0.0)


def latent_probs(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, needed: Tensor | None) -> Tensor:
    """Eq. 2 as in `led_sglang.ops.head.latent_probs`; rows that are not needed hold anything."""
    num_layers, num_rows = latents.shape[:2]
    is_needed = torch.ones_like(tau[:, 0], dtype=torch.bool) if needed is None else needed
    flat_tau = tau[:, 0].float().repeat(num_layers)
    normalizers = log_normalizers(latents.flatten(0, 1), is_needed.repeat(num_layers), head, flat_tau)
    logits = candidate_logits(latents, candidate_ids, head, tau)
    normalizers, logits = across_ranks(normalizers.view(num_layers, num_rows), logits, head)
    return (logits - normalizers[..., None]).exp() + (normalizers - normalizers)[..., None]
