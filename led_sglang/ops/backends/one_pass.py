"""The one-pass form: the LM head's own weight pass covers latent rows, before it is known which rows will explore.

A small batch waits for the head's weight, not for its arithmetic: rows beside the final ones are all but free there,
and a second read of the weight is not. The coin's uniform does not depend on p: rows that will hardly explore stay out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops.backends.lm_head import complete_lse, finish_logits, tile_width
from led_sglang.ops.types import Head, KnownLse, LedRows, StepInputs

# A row explores where its uniform is below 1 - max p. Above this threshold it does so only where max p < 0.2, and then
# the second pass serves it.
COIN_THRESHOLD = 0.8
# Where both forms cost the same on one H200, four fifths of the rows in the pass: `crossing` of benchmarks.gpu.cost,
# whose test compares. Counted, not measured yet.
MAX_ROWS = 35
MAX_ROWS_OF = {"full": MAX_ROWS, "fp8": 19}  # by what a second pass reads


def form_of(num_rows: int, requested: str, allows_dynamic_shapes: bool, head_lse: str = "full") -> str:
    """The form for a batch of so many rows: "one_pass" or "coin_first".

    "auto": one pass up to MAX_ROWS_OF with fixed shapes. With dynamic ones (CPU) the rows that explore are known at no
    cost before the latents are touched, and a small product is bound by arithmetic: one pass gains nothing.
    """
    if requested != "auto":
        return requested
    return "one_pass" if num_rows <= MAX_ROWS_OF[head_lse] and not allows_dynamic_shapes else "coin_first"


def one_pass_mask(rows: LedRows, inputs: StepInputs, coin_threshold: float) -> Tensor:
    """(R,) bool: rows whose latents the pass should cover. No host sync. Norm and offset are for the second pass."""
    mask = inputs.active & (rows.depth > 1)
    if coin_threshold < 1.0:
        mask = mask & ((inputs.coin_uniform < coin_threshold) | ~rows.exploit | rows.trace)
    if rows.any_norm:
        mask = mask & ~rows.latent_norm
    if rows.any_offset:
        mask = mask & (rows.latent_offset == 0)
    return mask


def fill_mask(
    rows: LedRows, inputs: StepInputs, coin_threshold: float, index: Tensor | None, mask: Tensor, tau: Tensor
) -> None:
    """In torch; see `led_sglang.ops.backend.Backend.one_pass_mask`."""
    row_idx = slice(len(inputs.active)) if index is None else index
    mask[row_idx], tau[row_idx] = one_pass_mask(rows, inputs, coin_threshold), rows.tau


def known_lse_of(rows: LedRows, lse: Tensor, has_lse: Tensor, coin_threshold: float) -> KnownLse:
    """What `led_step` is given: (J, R) log-sum-exps, and of which rows they are, maybe fewer than the mask has."""
    return KnownLse(lse, has_lse, is_complete=coin_threshold >= 1.0 and not rows.any_norm and not rows.any_offset)


def head_pass(
    hidden: Tensor,
    latents: Tensor,
    head: Head,
    tau: Tensor,
    mask: Tensor,
    lse: Tensor,
    allows_dynamic_shapes: bool,
) -> Tensor:
    """In torch; see `led_sglang.ops.backend.Backend.head_pass`."""
    index = mask.nonzero().squeeze(1) if allows_dynamic_shapes else None
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

    With dynamic shapes only: it reads where the rows are.
    """
    index = mask.nonzero().squeeze(1)
    if len(index):
        write(lse, index, complete_lse(latents.index_select(1, index), head, tau[index, None], None))


def write(lse: Tensor, index: Tensor | None, values: Tensor) -> None:
    if index is None:
        lse.copy_(values)
    else:
        lse.index_copy_(1, index, values)
