"""What the method needs of a product that the engine made (a quantised head): one kernel, no float32 copy of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.backends.lm_head import PROJECT_ROWS, engine_product
from led_sglang.ops.kernels.candidates import tanh
from led_sglang.ops.types import Head

BLOCK_VOCAB = 4096  # logits of a row read at once
BLOCK_CANDIDATES = 16


@triton.jit  # type: ignore[untyped-decorator]
def finish(raw, scale, softcap, tau, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits over tau of the head's products."""
    logits = raw.to(tl.float32) * scale
    if HAS_SOFTCAP:
        logits = softcap * tanh(logits / softcap)
    return logits / tau


@triton.jit(do_not_specialize=["start", "num_batch", "num_candidates"])  # type: ignore[untyped-decorator]
def product_kernel(  # type: ignore[no-untyped-def]
    products,  # (n, V_shard): rows `start` and following of the J B latent rows, layer by layer
    ids,  # (B, K) int64
    tau,  # (B,) float32
    explore_mask,  # (B,) bool
    sums,  # (J B,) float32, written: log-sum-exp over the shard
    logits,  # (J B, K) float32, written: the candidates', 0 where another rank has them
    start,
    num_batch,
    num_candidates,
    first_id,
    num_vocab,
    stride,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_idx = start + tl.program_id(0)
    row, product = row_idx % num_batch, products + tl.program_id(0).to(tl.int64) * stride
    is_needed, over = tl.load(explore_mask + row) != 0, tl.load(tau + row)
    result = 0.0
    if is_needed:
        peak = tl.full((BLOCK_V,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_V,), tl.float32)  # of exponentials relative to `peak`, both lane by lane
        for first in range(0, num_vocab, BLOCK_V):
            columns = first + tl.arange(0, BLOCK_V)
            raw = tl.load(product + columns, mask=columns < num_vocab, other=float("-inf"))
            values = tl.where(columns < num_vocab, finish(raw, scale, softcap, over, HAS_SOFTCAP), float("-inf"))
            higher = tl.maximum(peak, values)
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(peak - shift) + tl.exp(values - shift)
            peak = higher
        highest = tl.max(peak, 0)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        result = highest + tl.log(tl.sum(total * tl.exp(peak - shift), 0))
    tl.store(sums + row_idx, result)
    for first in range(0, num_candidates, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        tokens = tl.load(ids + row * num_candidates + columns, mask=columns < num_candidates, other=-1) - first_id
        is_local = is_needed & (tokens >= 0) & (tokens < num_vocab)
        raw = tl.load(product + tokens, mask=is_local, other=0.0)
        found = tl.where(is_local, finish(raw, scale, softcap, over, HAS_SOFTCAP), 0.0)
        tl.store(logits + row_idx.to(tl.int64) * num_candidates + columns, found, mask=columns < num_candidates)


def projected_sums(
    latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, explore_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """As `led_sglang.ops.backends.lm_head.local_sums` of a head that the engine multiplies: (J, N), (J, N, K).

    Every row goes through the engine's product, whose number of rows is the host's to say; of rows that are not needed,
    (N,) bool, nothing more is read, and they hold 0.
    """
    (num_layers, num_batch, _), num_candidates = latents.shape, candidate_ids.shape[1]
    flat, num_rows = latents.flatten(0, 1), num_layers * num_batch
    sums = torch.empty(num_layers, num_batch, device=latents.device)
    logits = torch.empty(num_layers, num_batch, num_candidates, device=latents.device)
    ids, taus, flags = candidate_ids.contiguous(), tau.flatten().float().contiguous(), explore_mask.contiguous()
    for start in range(0, num_rows, PROJECT_ROWS):
        products = engine_product(flat[start : start + PROJECT_ROWS], head)
        product_kernel[(len(products),)](
            products, ids, taus, flags, sums, logits, start, num_batch, num_candidates, head.first_id, head.num_rows,
            products.stride(0), head.scale, head.softcap or 1.0, HAS_SOFTCAP=head.softcap is not None,
            BLOCK_V=BLOCK_VOCAB, BLOCK_K=BLOCK_CANDIDATES, num_warps=8,
        )  # fmt: skip
        del products  # before the next is made
    return sums, logits
