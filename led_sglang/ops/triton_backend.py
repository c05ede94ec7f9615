"""The fused step with the latent rows' log-sum-exp in one Triton kernel."""

from torch import Tensor

from led_sglang.ops import fused
from led_sglang.ops.types import Head, LedRows, LedStep, Noise


def led_step(final_logits: Tensor, latents: Tensor, head: Head, rows: LedRows, noise: Noise) -> LedStep:
    """See `led_sglang.ops.led_step`. Triton is imported on first use: a machine without a GPU need not have it."""
    from led_sglang.ops.triton_head import is_interpreted, latent_probs

    if final_logits.device.type == "cpu" and not is_interpreted():
        raise ValueError('LED backend "triton" needs a GPU; this step is on cpu')
    return fused.decode(final_logits, latents, head, rows, noise, latent_probs)
