"""The fused step with its reductions over the vocabulary, and all that follows them, in Triton kernels."""

from torch import Tensor

from led_sglang.ops import fused
from led_sglang.ops.types import Head, LedRows, LedStep, Noise, Ridden


def led_step(
    final_logits: Tensor, latents: Tensor, head: Head, rows: LedRows, noise: Noise, ridden: Ridden | None = None
) -> LedStep:
    """See `led_sglang.ops.led_step`. Triton is imported on first use: a machine without a GPU need not have it."""
    from led_sglang.ops.triton_head import is_interpreted, latent_probs
    from led_sglang.ops.triton_rows import log_masses
    from led_sglang.ops.triton_tail import tail

    if final_logits.device.type == "cpu" and not is_interpreted():
        raise ValueError('LED backend "triton" needs a GPU; this step is on cpu')
    kernels = fused.Kernels(latent_probs, log_masses, tail)
    return fused.led_step(final_logits, latents, head, rows, noise, ridden, kernels)
