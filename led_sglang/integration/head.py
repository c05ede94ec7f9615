"""Describe the engine's LM head to `ops`."""

from typing import Any

from torch import Tensor

from led_sglang.integration.capture import CaptureError
from led_sglang.ops.types import Head


def build_head(logits_processor: Any, lm_head: Any, final_norm: Any, tp_group: Any) -> Head:
    """The head as `ops` needs it. Raises CaptureError for a head whose weight cannot be read (quantised, LoRA)."""
    weight = getattr(lm_head, "weight", None)
    is_plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1
    if not is_plain or hasattr(lm_head, "apply_lora"):
        raise CaptureError(
            f"LED reads the LM head's weight, but {type(lm_head).__name__} is quantised or LoRA-wrapped. "
            f"Start with --led-max-depth 1 or --led disabled."
        )
    assert isinstance(weight, Tensor)
    vocab_size = int(logits_processor.vocab_size)
    num_ranks = tp_group.world_size
    first_id, num_rows = 0, vocab_size
    if num_ranks > 1:
        shard = lm_head.shard_indices
        first_id, num_rows = shard.org_vocab_start_index, shard.num_org_elements

    def all_gather(packed: Tensor) -> Tensor:
        return tp_group.all_gather(packed.unsqueeze(0), dim=0)  # (ranks, n)

    return Head(
        weight=weight,
        num_rows=min(num_rows, weight.shape[0]),
        first_id=first_id,
        bias=getattr(lm_head, "bias", None),
        scale=float(logits_processor.logit_scale or 1.0),
        softcap=logits_processor.final_logit_softcapping,
        final_norm=final_norm,
        all_gather=all_gather if num_ranks > 1 else None,
    )
