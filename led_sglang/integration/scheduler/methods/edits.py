"""The engine's penalties and logit bias, as `ops` takes them: tables of the batch, and which rows have any."""

from typing import TYPE_CHECKING

from torch import Tensor

from led_sglang.config.methods import METHOD_TABLE
from led_sglang.ops.edits import LogitEdits

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.sampling.sampling_params import SamplingParams

    from led_sglang.integration.scheduler.batch import LedBatch, MethodGroup


def is_edited(params: "SamplingParams") -> bool:
    """Whether a request's SamplingParams ever touch its logits, a grammar and custom logit processors apart."""
    has_penalty = params.frequency_penalty != 0 or params.presence_penalty != 0 or params.repetition_penalty != 1
    return bool(has_penalty or params.logit_bias or params.min_new_tokens)


def edits_of(info: "SamplingBatchInfo", rows: Tensor | None, edited: Tensor | None) -> LogitEdits | None:
    """Those of some rows of the batch, (R,), None = all; edited: see `LogitEdits`. None: the batch has no tables.

    info: the forward's own SamplingBatchInfo, whose penalties are accumulated (`copy_for_forward`) and which is applied
    by `apply_logits_bias` in the order of `LogitEdits`.
    """
    tables = info.acc_additive_penalties, info.acc_scaling_penalties, info.logit_bias
    return None if all(table is None for table in tables) else LogitEdits(*tables, rows, edited)


def unedited_logits(led: "LedBatch | None", info: "SamplingBatchInfo", logits: Tensor) -> dict[str, Tensor]:
    """Copies (n, V) of the rows of methods that rewrite logits, before the engine edits `logits` (B, V) in place.

    Only where one of them has edits.
    """
    if led is None or not led.rewrites_edited:
        return {}
    groups = led.device_rows(info).groups
    return {method: logits[group.batch_rows] for method, group in groups.items() if METHOD_TABLE[method].rewrite}


def unedited(
    info: "SamplingBatchInfo", group: "MethodGroup", final: Tensor, unedited_logits: Tensor
) -> tuple[Tensor, LogitEdits | None]:
    """`unedited_logits` and `edits` of `MethodRows` for a group's rows: (n, V) and its edits.

    A custom logit processor runs behind the engine's edits and knows no layers: what it changes belongs to the final
    layer.
    """
    edits = edits_of(info, group.batch_rows, None)
    unedited_logits = unedited_logits.float()
    if edits is not None and info.has_custom_logit_processor:
        change = final.float() - edits.apply(unedited_logits.clone())
        unedited_logits = unedited_logits + change.masked_fill(~change.isfinite(), 0.0)
    return unedited_logits, edits
