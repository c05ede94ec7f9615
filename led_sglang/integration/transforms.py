"""The other methods' rows in a step: they rewrite the engine's logits, or force a token and the next input."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from led_sglang.integration.batch import MethodGroup
from led_sglang.integration.layers import confident_layers, dola_layers

if TYPE_CHECKING:
    from led_sglang.integration.sampler import StepContext

Override = tuple[Tensor, Tensor, Tensor]  # batch rows (n,), token ids (n,), bool (n,): really forced


def _latents(context: "StepContext", layers: tuple[int, ...], batch_rows: Tensor) -> Tensor:
    """The captured states of `layers` for some rows of the batch: (len(layers), n, H)."""
    capture = context.runtime.capture
    assert capture.buffer is not None
    picked = torch.tensor([capture.layers.index(layer) for layer in layers], device=batch_rows.device)
    return capture.buffer[picked[:, None], batch_rows[None, :]]


def dola(context: "StepContext", group: MethodGroup, logits: Tensor) -> None:
    """DoLa (arXiv 2309.03883): contrast with the early layer that differs most, picked row by row."""
    from led_sglang.ops.dola import dola_logits

    config, head = context.runtime.config, context.runtime.head
    assert head is not None
    low, high = dola_layers(config, "low"), dola_layers(config, "high")
    layers = tuple(dict.fromkeys((*low, *high)))
    wanted = [[layer in (low if p.layers == "low" else high) for layer in layers] for p in group.params]
    candidates = torch.tensor(wanted, device=logits.device)  # (n, E)
    early = _latents(context, layers, group.batch_rows)
    contrast, _ = dola_logits(
        logits[group.batch_rows], early, candidates, group.column("relative_top", torch.float32), head
    )
    logits[group.batch_rows] = contrast.to(logits.dtype)


def confident(context: "StepContext", group: MethodGroup, logits: Tensor) -> None:
    """Confident Decoding (arXiv 2606.21906): the logits of the first entropy valley behind the final layer."""
    from led_sglang.ops.confident import confident_logits

    head = context.runtime.head
    assert head is not None
    latents = _latents(context, confident_layers(context.runtime.config), group.batch_rows)
    chosen, _ = confident_logits(logits[group.batch_rows], latents, group.column("num_layers", torch.int64), head)
    logits[group.batch_rows] = chosen.to(logits.dtype)


HANDLERS: dict[str, Callable[["StepContext", MethodGroup, Tensor], Override | None]] = {
    "dola": dola,
    "confident": confident,
}
