"""The other methods' rows in a step: they rewrite the engine's logits, or force a token and the next input."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from led_sglang.config.fields import MAX_SOFT_TOP_K
from led_sglang.integration.scheduler.batch import MethodGroup
from led_sglang.integration.scheduler.latents.capture_plan import confident_layers, dola_layers
from led_sglang.integration.scheduler.methods.edits import unedited
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.methods.confident import confident_logits
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.soft_thinking import cold_stop, soft_mixture
from led_sglang.ops.rows.noise import uniforms

if TYPE_CHECKING:
    from led_sglang.integration.scheduler.step import StepContext

Override = tuple[Tensor, Tensor, Tensor]  # batch rows (n,), token ids (n,), bool (n,): really forced


def _latents(context: "StepContext", layers: tuple[int, ...], group: MethodGroup) -> Tensor:
    """The captured states of `layers` for the group's rows: (len(layers), n, H)."""
    capture = context.runtime.capture
    picked = group.tensor("picked", lambda: [capture.layers.index(layer) for layer in layers], torch.int64)
    return capture.states[picked[:, None], group.batch_rows[None, :]]


def _unedited(
    context: "StepContext", group: MethodGroup, final: Tensor, method: str
) -> tuple[Tensor | None, LogitEdits | None]:
    """Of a group's rows: the final logits (n, V) before penalties and bias, and these; None: no row has any."""
    unedited_logits = context.runtime.unedited_logits.get(method)
    return (None, None) if unedited_logits is None else unedited(context.info, group, final, unedited_logits)


def dola(context: "StepContext", group: MethodGroup, logits: Tensor) -> None:
    """DoLa (arXiv 2309.03883): contrast with the early layer that differs most, picked row by row."""
    config, head = context.runtime.config, context.runtime.head
    assert head is not None
    low, high = dola_layers(config, "low"), dola_layers(config, "high")
    layers = tuple(dict.fromkeys((*low, *high)))
    candidates = group.tensor(
        "candidates",
        lambda: [[layer in (low if p.layers == "low" else high) for layer in layers] for p in group.params],
        torch.bool,
    )  # (n, E)
    early, final = _latents(context, layers, group), logits[group.batch_rows]
    limit = group.column("relative_top", torch.float32)
    contrast, _ = dola_logits(final, early, candidates, limit, head, *_unedited(context, group, final, "dola"))
    logits[group.batch_rows] = contrast.to(logits.dtype)


def confident(context: "StepContext", group: MethodGroup, logits: Tensor) -> None:
    """Confident Decoding (arXiv 2606.21906): the logits of the first entropy valley behind the final layer."""
    head = context.runtime.head
    assert head is not None
    latents = _latents(context, confident_layers(context.runtime.config), group)
    final, num_layers = logits[group.batch_rows], group.column("num_scanned_layers", torch.int64)
    chosen, _ = confident_logits(final, latents, num_layers, head, *_unedited(context, group, final, "confident"))
    logits[group.batch_rows] = chosen.to(logits.dtype)


def soft(context: "StepContext", group: MethodGroup, logits: Tensor) -> Override:
    """Soft Thinking (arXiv 2505.15778), with Gumbel noise (2508.03440) where asked: the heaviest token is reported."""
    inputs = context.runtime.soft
    assert inputs is not None
    rows, slots, thinking = group.rows, context.inputs.slots[group.rows], context.inputs.thinking[group.rows]
    is_gumbel = group.params[0].method == "soft_thinking_gumbel"
    max_k = MAX_SOFT_TOP_K  # of every batch: with a width of the neighbours' a row's sums would round otherwise
    step = soft_mixture(
        logits[group.batch_rows],
        context.rows.params.temperature[rows],
        context.rows.params.greedy[rows],
        group.column("soft_top_k", torch.int64),
        group.column("gumbel_temperature", torch.float32),
        _gumbel_noise(context, group, max_k) if is_gumbel else None,
        max_k,
    )
    is_decode = context.runtime.forward_batch.forward_mode.is_decode()
    count = inputs.num_low_entropy[slots] if is_decode else torch.zeros_like(slots)
    count, stop = cold_stop(
        step.entropy,
        count,
        group.column("early_stop_entropy", torch.float32),
        group.column("early_stop_length", torch.int64),
    )
    forced = torch.where(stop, inputs.close_id, step.ids[:, 0])
    is_forced = thinking & step.ok
    inputs.write(slots, step.ids, step.weights, is_forced & (forced != inputs.close_id), count)
    return group.batch_rows, forced, is_forced


def _gumbel_noise(context: "StepContext", group: MethodGroup, num_columns: int) -> Tensor:
    """(n, num_columns), of streams of their own: the first two are LED's coin and token."""
    rows, own = context.rows, group.rows
    return uniforms(rows.seed[own], rows.sample[own], context.inputs.positions[own], 2 + num_columns)[2:].T


HANDLERS: dict[str, Callable[["StepContext", MethodGroup, Tensor], Override | None]] = {
    "dola": dola,
    "confident": confident,
    "soft_thinking": soft,
    "soft_thinking_gumbel": soft,
}
