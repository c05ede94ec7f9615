"""The one-pass form: latent rows ride in the LM head's own weight pass, before anyone knows which rows will explore.

A small batch waits for the head's weight, not for its arithmetic: rows beside the final ones are all but free there,
and a second read of the weight is not. The coin's uniform does not depend on p: rows that will hardly explore stay out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops import arrays
from led_sglang.ops.backends.lm_head import complete_lse, finish_logits, tile_width
from led_sglang.ops.types import Head, KnownLse, LedRows

BACKENDS = ("fused", "compiled", "triton")  # that can use what rode
# A row explores where its uniform is below 1 - max p. Above this cut it does so only where max p < 0.2, and then the
# second pass serves it.
COIN_THRESHOLD = 0.8
# Where both forms cost the same on one H200 with a 4 B model, computed from bytes and operations; not measured yet.
MAX_ROWS = 51


def form_of(num_rows: int, requested: str, device: torch.device) -> str:
    """The form for a batch of so many rows: "one_pass" or "coin_first".

    "auto": one pass up to MAX_ROWS where the host cannot look. Where it can (CPU), the rows that explore are known for
    nothing before the latents are touched, and a small product is bound by arithmetic: nothing is gained by riding.
    """
    if requested != "auto":
        return requested
    return "one_pass" if num_rows <= MAX_ROWS and not arrays.allows_dynamic_shapes(device) else "coin_first"


def coin_threshold_of(backend: str, device: torch.device) -> float:
    """Plain torch with fixed shapes computes all rows anyway: none is left out, and none needs a second pass."""
    return 1.0 if backend == "fused" and not arrays.allows_dynamic_shapes(device) else COIN_THRESHOLD


def one_pass_mask(rows: LedRows, coin_uniform: Tensor, coin_threshold: float) -> Tensor:
    """(R,) bool: the rows whose latents should ride. No host sync. Norm and offset are for the second pass."""
    mask = rows.active & (rows.depth > 1)
    if coin_threshold < 1.0:
        mask = mask & ((coin_uniform < coin_threshold) | ~rows.exploit | rows.trace)
    if rows.any_norm:
        mask = mask & ~rows.latent_norm
    if rows.any_offset:
        mask = mask & (rows.latent_offset == 0)
    return mask


def fill_one_pass_mask(
    rows: LedRows,
    coin_uniform: Tensor,
    coin_threshold: float,
    index: Tensor | None,
    mask: Tensor,
    tau: Tensor,
    backend: str,
) -> None:
    """Write which rows should ride and their temperatures into wanted (B,) bool and tau (B,) float32 of the batch.

    index: (R,) int64, the rows' places in the batch; None: its first R. Other places keep what they hold.
    """
    if backend == "triton" and not arrays.allows_dynamic_shapes(coin_uniform.device):
        from led_sglang.ops.kernels.one_pass_mask import fill_one_pass_mask as one_pass_mask_kernel_call

        one_pass_mask_kernel_call(rows, coin_uniform, coin_threshold, index, mask, tau)
        return
    row_idx = slice(len(coin_uniform)) if index is None else index
    mask[row_idx], tau[row_idx] = one_pass_mask(rows, coin_uniform, coin_threshold), row_tau(rows)


def known_lse_of(rows: LedRows, lse: Tensor, has_lse: Tensor, coin_threshold: float) -> KnownLse:
    """What `led_step` is told: (J, R) log-sum-exps and the rows that rode, which may be fewer than were wanted."""
    return KnownLse(lse, has_lse, is_complete=coin_threshold >= 1.0 and not rows.any_norm and not rows.any_offset)


def head_pass(
    hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, mask: Tensor, lse: Tensor, backend: str
) -> Tensor:
    """The head's product of the final rows and the latents' log-sum-exps from one read of the weight.

    hidden (B, H): the normed final states; latents (J, B, H): un-normed, in the order of `led_step`; tau (B,) float32;
    wanted (B,) bool. Writes normalizers (J, B) float32 where wanted: log sum exp(logit / tau) over this rank's rows of
    the vocabulary, with the head's bias, scale and soft cap; elsewhere any value. Returns (B, V_shard) in the weight's
    dtype: the bare product, padding included, as the engine computes it. Graph-safe where the host cannot look.

    The final rows' last bits are those of a product with more rows: matrix libraries choose their summation order by
    the number of rows. Where they must equal the engine's own, let the engine multiply and use `separate_pass`.
    """
    if head.project is not None or backend not in BACKENDS:
        raise ValueError(f"the one-pass form needs a head with a weight and a backend of {', '.join(BACKENDS)}")
    if backend == "triton":
        from led_sglang.ops.kernels.lm_head import head_pass as triton_head_pass

        return triton_head_pass(hidden, latents, head, tau, mask, lse)
    index = mask.nonzero().squeeze(1) if arrays.allows_dynamic_shapes(hidden.device) else None
    latent_rows, latent_tau = (latents, tau) if index is None else (latents.index_select(1, index), tau[index])
    logits, sums = tiled_pass(hidden, latent_rows.flatten(0, 1), head, latent_tau.repeat(len(latents))[:, None])
    write(lse, index, sums.view(latent_rows.shape[:2]))
    return logits


def tiled_pass(hidden: Tensor, latent_rows: Tensor, head: Head, tau: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H), (N, H), (N, 1) -> (B, V_shard), (N,): every vocabulary tile of the weight is read once for all rows."""
    num_final, weight = len(hidden), head.weight
    rows = torch.cat([hidden.to(weight.dtype), latent_rows])  # (B + N, H)
    logits = rows.new_empty(num_final, weight.shape[0])
    width, sums = tile_width(len(rows), rows.device, head.is_batch_invariant), []
    for start in range(0, weight.shape[0], width):
        product = F.linear(rows, weight[start : start + width])  # (B + N, width)
        logits[:, start : start + width] = product[:num_final]
        stop = min(start + width, head.num_rows)
        if start < stop:  # the rest is padding
            latent = product[num_final:, : stop - start]
            latent = latent.float() if head.bias is None else latent.float() + head.bias[start:stop].float()
            sums.append(finish_logits(latent, head, tau).logsumexp(-1))
    if not sums:
        return logits, tau.new_full((len(latent_rows),), -torch.inf)
    return logits, torch.stack(sums).logsumexp(0)


def separate_pass(latents: Tensor, head: Head, tau: Tensor, mask: Tensor, lse: Tensor) -> None:
    """The same log-sum-exps beside a product that the engine makes itself: two reads, and the engine's own last bits.

    For the CPU: reads where the rows are.
    """
    index = mask.nonzero().squeeze(1)
    if len(index):
        write(lse, index, complete_lse(latents.index_select(1, index), head, tau[index, None], None))


def write(lse: Tensor, index: Tensor | None, values: Tensor) -> None:
    if index is None:
        lse.copy_(values)
    else:
        lse.index_copy_(1, index, values)


def row_tau(rows: LedRows) -> Tensor:
    """(R,) float32: 1 where greedy."""
    return rows.temperature.masked_fill(rows.greedy, 1.0) if rows.any_greedy else rows.temperature
