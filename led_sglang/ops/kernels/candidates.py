"""The k candidates' logits in every latent layer of a row: from their head rows, or from a product of the engine's.

`candidates_kernel` reads the head rows where they lie. `product_kernel` reads what the engine multiplied (a quantised
head) and gives the log-sum-exp too, without a float32 copy of the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.backends.lm_head import PROJECT_ROWS, engine_product
from led_sglang.ops.kernels.common import tanh, width_of
from led_sglang.ops.types import Head

BLOCK_HIDDEN = 512
MAX_TILE = 1 << 14  # products held at once by a program
BLOCK_VOCAB = 4096  # logits of a row read at once, of an engine's product
BLOCK_CANDIDATES = 16  # of them candidates


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
    """logits[j, n, i] = softcap(scale * (<W[ids[n, i]], h[j, n]> + b)) / tau[n], the z^l(x_i) / tau of Eq. 2.

    A program: BLOCK_K candidates of one row in one layer. It reads BLOCK_K head rows and one state, H elements each, in
    steps of BLOCK_H, and holds BLOCK_K x BLOCK_H float32 products.
    """
    row, layer, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
    is_column = columns < num_candidates
    offsets = (layer * num_rows + row) * num_candidates + columns
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
    tl.store(logits + offsets, found, mask=is_column)


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
    """sums[j, n] = log sum_v exp(z_v), logits[j, n, i] = z[ids[n, i]] of z = softcap(scale * product) / tau (Eq. 2).

    A program: one latent row. It reads its V_shard products once, BLOCK_V at a time, and K of them again.
    """
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
