"""Describe the engine's LM head to `ops`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, dtype, empty

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.ranks import row_group
from led_sglang.ops.fp8.rows import Fp8Rows
from led_sglang.ops.types import Head

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead


def build_head(
    logits_processor: "LogitsProcessor",
    lm_head: "ParallelLMHead",
    final_norm: Callable[[Tensor], Tensor] | None,
    tp_group: "GroupCoordinator | None",
    dtype: dtype,
    input_scale: float = 1.0,
) -> Head:
    """The head as `ops` needs it; a quantised one, or one in another dtype, is multiplied by the engine.

    tp_group: the ranks that have its parts (`head_group`). dtype: of the hidden states. input_scale: what the model
    multiplies the final norm's output with before the head. A bias of the head is left out, as the engine leaves it
    out. Raises CaptureError for a LoRA head.
    """
    refuse_lora(lm_head)
    is_dense = has_dense_weight(lm_head) and lm_head.weight.dtype == dtype
    weight = lm_head.weight if is_dense else _placeholder(logits_processor, lm_head)
    vocab_size = int(logits_processor.vocab_size)
    shard = getattr(lm_head, "shard_indices", None)  # Gemma's tied embedding has none: each rank holds all of it
    num_ranks = 1 if tp_group is None else tp_group.world_size
    is_sharded = shard is not None and min(num_ranks, getattr(lm_head, "tp_size", num_ranks)) > 1
    first_id, num_rows = 0, vocab_size
    if is_sharded and shard is not None:
        first_id, num_rows = shard.org_vocab_start_index, shard.num_org_elements

    def all_gather(packed: Tensor) -> Tensor:
        assert tp_group is not None
        return tp_group.all_gather(packed.unsqueeze(0), dim=0)  # (ranks, n)

    return Head(
        weight=weight,
        num_rows=min(num_rows, weight.shape[0]),
        first_id=first_id,
        scale=float(logits_processor.logit_scale or 1.0) * input_scale,
        softcap=logits_processor.final_logit_softcapping,
        final_norm=final_norm,
        all_gather=all_gather if is_sharded else None,
        project=None if is_dense else _engine_product(logits_processor, lm_head),
    )


def copy_for_lse(head: Head) -> Fp8Rows:
    """Of `--led-head-lse fp8`. Raises CaptureError for a head that has no weight to copy."""
    if head.project is not None:
        raise CaptureError(
            "--led-head-lse fp8 is not possible here: the LM head is quantised, or in another dtype than the model, "
            "and the engine multiplies with it. Start with --led-head-lse full"
        )
    return Fp8Rows.of(head.weight)


def head_group(lm_head: "ParallelLMHead | None") -> "GroupCoordinator | None":
    """The ranks that share a batch's rows, where they have the head in parts; None: each has all of it.

    Raises CaptureError for a head whose parts are on other ranks too, as some models' under data-parallel attention.
    """
    rows = row_group()
    num_parts = int(getattr(lm_head, "tp_size", rows.world_size))
    if num_parts == rows.world_size:
        return rows
    if num_parts == 1:
        return None
    raise CaptureError(
        f"the LM head is cut over {num_parts} ranks and a batch's rows live on {rows.world_size} of them: this model "
        f"does not follow --enable-dp-lm-head. Start without data-parallel attention, or with --led disabled"
    )


def refuse_lora(lm_head: "ParallelLMHead") -> None:
    """Raises CaptureError for a head that adds an adapter to each row."""
    if hasattr(lm_head, "apply_lora"):
        raise CaptureError(
            f"{type(lm_head).__name__} adds another adapter to each row of the batch, which LED's latent rows cannot "
            f"say. Leave lm_head out of --lora-target-modules and of the adapters, or start with --led disabled."
        )


def has_dense_weight(lm_head: "ParallelLMHead") -> bool:
    """The weight can be multiplied with as it is: a float matrix of at least 16 bits, without a quantisation method."""
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method

    weight = getattr(lm_head, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() == 1:
        return False
    return not should_apply_lm_head_quant_method(lm_head, getattr(lm_head, "quant_method", None))


def _placeholder(logits_processor: "LogitsProcessor", lm_head: "ParallelLMHead") -> Tensor:
    """(V_shard, 0): as many rows as the engine's product has columns."""
    num_rows = getattr(lm_head, "num_embeddings_per_partition", None) or int(logits_processor.vocab_size)
    device = next(iter(lm_head.parameters())).device
    return empty(num_rows, 0, device=device)


def _engine_product(logits_processor: "LogitsProcessor", lm_head: "ParallelLMHead") -> Callable[[Tensor], Tensor]:
    def project(rows: Tensor) -> Tensor:
        logits: Tensor = logits_processor._compute_lm_head(rows, lm_head)
        return logits

    return project


def why_no_one_pass(logits_processor: "LogitsProcessor", lm_head: "ParallelLMHead", head: Head) -> str | None:
    """None where the engine's product is the plain one, which the one-pass form replaces on a GPU."""
    if head.project is not None:
        return f"{type(lm_head).__name__} has no plain weight: the engine multiplies"
    for switch in ("use_fp32_lm_head", "use_fp32_lm_head_output", "rl_on_policy_target"):
        if getattr(logits_processor, switch, None):
            return f"the engine multiplies in its own way ({switch})"
    return None
