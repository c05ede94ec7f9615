"""The k candidates' logits in every latent layer of a row in one kernel: their head rows are read where they lie."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.columns import width_of
from led_sglang.ops.types import Head

BLOCK_HIDDEN = 128
MAX_TILE = 1 << 14  # products held at once by a program


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit(do_not_specialize=["num_rows", "num_candidates", "stride_layer", "first_id"])  # type: ignore[untyped-decorator]
def candidates_kernel(  # type: ignore[no-untyped-def]
    latents,  # (J, N, H)
    weight,  # (V_shard, H)
    bias,  # (V_shard,)
    ids,  # (N, K) int64
    tau,  # (N,)
    explore_mask,  # (N,) bool
    logits,  # (J, N, K) float32
    num_rows,
    num_candidates,
    hidden,
    stride_layer,
    stride_row,
    stride_dim,
    stride_token,
    stride_weight,
    first_id,
    num_vocab,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row, layer, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
    is_column = columns < num_candidates
    row_idx = (layer * num_rows + row) * num_candidates + columns
    found = tl.zeros((BLOCK_K,), tl.float32)
    if tl.load(explore_mask + row) != 0:
        tokens = tl.load(ids + row * num_candidates + columns, mask=is_column, other=-1) - first_id
        is_local = is_column & (tokens >= 0) & (tokens < num_vocab)  # the others are another rank's
        products = tl.zeros((BLOCK_K, BLOCK_H), tl.float32)
        for start in range(0, hidden, BLOCK_H):
            dims = start + tl.arange(0, BLOCK_H)
            is_dim = dims < hidden
            state = tl.load(
                latents + layer * stride_layer + row * stride_row + dims * stride_dim, mask=is_dim, other=0.0
            )
            direction = tl.load(
                weight + tokens[:, None] * stride_token + dims[None, :] * stride_weight,
                mask=is_local[:, None] & is_dim[None, :],
                other=0.0,
            )
            products += direction.to(tl.float32) * state.to(tl.float32)[None, :]
        found = tl.sum(products, 1)
        if HAS_BIAS:
            found += tl.load(bias + tokens, mask=is_local, other=0.0).to(tl.float32)
        found *= scale
        if HAS_SOFTCAP:
            found = softcap * tanh(found / softcap)
        found = tl.where(is_local, found / tl.load(tau + row), 0.0)
    tl.store(logits + row_idx, found, mask=is_column)


def candidate_logits(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, explore_mask: Tensor) -> Tensor:
    """As `led_sglang.ops.backends.lm_head.candidate_logits`; 0 too in the rows that are not needed, (N,) bool."""
    (num_layers, num_rows, hidden), num_candidates = latents.shape, candidate_ids.shape[1]
    logits = torch.empty(num_layers, num_rows, num_candidates, device=latents.device)
    block = min(width_of(num_candidates, head.is_batch_invariant), MAX_TILE // BLOCK_HIDDEN)
    if logits.numel():
        candidates_kernel[(num_rows, num_layers, -(-num_candidates // block))](
            latents,
            head.weight,
            head.weight if head.bias is None else head.bias,
            candidate_ids.contiguous(),
            tau.float().contiguous(),
            explore_mask.contiguous(),
            logits,
            num_rows,
            num_candidates,
            hidden,
            latents.stride(0),
            latents.stride(1) if num_rows > 1 else hidden,  # any, where there is one row
            latents.stride(2),
            *head.weight.stride(),
            head.first_id,
            head.num_rows,
            head.scale,
            float(head.softcap or 1.0),
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            BLOCK_K=block,
            BLOCK_H=BLOCK_HIDDEN,
        )
    return logits
