"""The step in a handful of kernels, for a GPU: a small batch waits for launches, not for arithmetic."""

from torch import Tensor

from led_sglang.ops import arrays
from led_sglang.ops.backends.one_pass import row_tau
from led_sglang.ops.backends.torch_step import pick_latents
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.types import Head, KnownLse, LedRows, LedStep, Noise


def led_step(
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    noise: Noise,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`. Triton is imported on first use: a machine without a GPU need not have it."""
    from led_sglang.ops.kernels.final_layer import final_rows
    from led_sglang.ops.kernels.lm_head import is_interpreted, latent_sums
    from led_sglang.ops.kernels.mix_and_sample import mix_and_sample

    if arrays.allows_dynamic_shapes(final_logits.device) and not is_interpreted():
        raise ValueError('LED backend "triton" needs a GPU; this step is on cpu')
    tau, num_layers = row_tau(rows), rows.max_depth - 1
    final = final_rows(final_logits, tau, rows, noise.coin_uniform)
    if num_layers:
        hidden = pick_latents(latents, head, rows, None, num_layers)
        sums = latent_sums(hidden, final.candidate_ids, head, tau[:, None], final.explore_mask, known_lse, edits)
    else:
        sums = tau.new_empty(0, len(tau)), tau.new_empty(0, *final.logprobs.shape)
    # The caller's latents are those of the deepest request that may come: their number does not change.
    fixed = len(latents), head.is_batch_invariant
    return mix_and_sample(
        final.logprobs, final.candidate_ids, *sums, final.explored, final.explore_mask, rows, noise, *fixed
    )
