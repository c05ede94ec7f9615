"""Confident Decoding (arXiv 2606.21906): decode from the first entropy valley, seen from the final layer backwards."""

import torch
from torch import Tensor
from torch.special import entr

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.methods.rows import MethodRows
from led_sglang.ops.methods.vocabulary import layers_at_once, vocabulary_logits, without_padding
from led_sglang.ops.types import Head

# Of `config.fields.SELECT_METHODS`: trough, -m1, -m2 (layers shallower), -p1, -p2 (deeper), last-m1, -m2, -m4, -m8.
FIRST_DEEPER, FIRST_LAST = 3, 5


def confident_logits(
    final_logits: Tensor,
    latents: Tensor,
    num_layers: Tensor,
    head: Head,
    unedited_logits: Tensor | None = None,
    edits: LogitEdits | None = None,
    selection: Tensor | None = None,
    keeps_final: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits that the engine then samples with the request's own temperature, top-p and top-k.

    Per row, all at temperature 1, with n = min(num_layers, N)::

        z[0]   = final_logits
        z[j]   = head(final_norm(latents[j-1]))  for 0 < j < n,  -inf where final_logits is -inf
        H[j]   = entropy(softmax(z[j]))
        valley = the largest j < n with H[0] > H[1] > ... > H[j]
        chosen = valley, shifted, or the fixed layer of "last-m..", kept within 0 .. n-1;  0 where keeps_final
        logits = z[chosen]

    So the scan goes back while entropy falls and stops at the first layer where it does not, a tie included; a window
    in which it falls to the end gives its shallowest layer. Where entropy rises at once on the way back, the final
    layer itself is decoded (chosen 0).

    With edits, penalties and bias that `final_logits` have and `unedited_logits` (R, V) have not: layers are compared
    without them (z[0] = unedited_logits, -inf where final_logits is), so that no bias decides where the valley is, and
    the chosen layer's logits are edited.

    final_logits (R, V) before temperature; latents (N-1, R, H): latents[j] = h[L-1-j], un-normed, in the model's dtype;
    num_layers (R,) int64, how many layers the row scans, the final one included; selection (R,) int64, which of
    `SELECT_METHODS`, None: "trough"; keeps_final (R,) bool, None: no row.

    Returns logits (R, V) float32, exactly final_logits where chosen is 0, and chosen (R,) int64. Rows in which a layer
    of the window is not finite, or in which the edits leave no token, get chosen 0. Nothing is modified; no host sync;
    with a sharded head every rank makes the same collectives: one for each LAYER_ELEMENTS
    (`vocabulary`) of latent logits and one more.
    """
    num_latents, num_rows = latents.shape[:2]
    if num_latents == 0 or num_rows == 0:
        return final_logits.float(), torch.zeros_like(num_layers)
    final = without_padding(final_logits, head)
    is_forbidden = final == -torch.inf
    normed = latents.flatten(0, 1) if head.final_norm is None else head.final_norm(latents.flatten(0, 1))
    normed = normed.view(latents.shape)
    if unedited_logits is not None:
        final = without_padding(unedited_logits, head).masked_fill(is_forbidden, -torch.inf)
    entropies = layer_entropies(final, normed, is_forbidden, head)  # (N, R)
    chosen = selected_layer(entropies, num_layers, selection)
    if keeps_final is not None:
        chosen = chosen.masked_fill(keeps_final, 0)

    hidden = normed[(chosen - 1).clamp_min(0), torch.arange(num_rows, device=chosen.device)]  # (R, H)
    logits = vocabulary_logits(hidden, head, final.shape[1]).masked_fill(is_forbidden, -torch.inf)
    if edits is not None:
        edits.apply(logits)
        chosen = chosen.where(logits.amax(-1).isfinite(), 0)
    return torch.where((chosen > 0)[:, None], logits, final_logits.float()), chosen


def selected_layer(entropies: Tensor, num_layers: Tensor, selection: Tensor | None) -> Tensor:
    """(N, R), final layer first -> (R,): see `confident_logits`."""
    layer_ids = torch.arange(1, entropies.shape[0], device=entropies.device)[:, None]  # (N-1, 1)
    is_inside = layer_ids < num_layers
    falls = (entropies[1:] < entropies[:-1]) & is_inside
    chosen = falls.to(torch.int64).cumprod(0).sum(0)
    if selection is not None:
        is_last = selection >= FIRST_LAST
        offset = torch.where(selection < FIRST_DEEPER, selection, FIRST_DEEPER - 1 - selection)
        chosen = torch.where(is_last, 1 << (selection - FIRST_LAST).clamp_min(0), chosen + offset)
        chosen = chosen.clamp_min(0).minimum((num_layers - 1).clamp_max(len(layer_ids)))
    is_broken = ~(entropies[1:].isfinite() | ~is_inside).all(0)
    return chosen.masked_fill(is_broken | ~entropies[0].isfinite(), 0)


def layer_entropies(final: Tensor, normed: Tensor, is_forbidden: Tensor, head: Head) -> Tensor:
    """Entropy in nats of the final layer (R, V) and of each latent one (N-1, R, H): (N, R)."""
    entropies = [entr(final.softmax(-1)).sum(-1)[None]]
    for layers in torch.split(normed, layers_at_once(final)):
        logits = vocabulary_logits(layers.flatten(0, 1), head, final.shape[1]).view(-1, *final.shape)  # (C, R, V)
        entropies.append(entr(logits.masked_fill(is_forbidden, -torch.inf).softmax(-1)).sum(-1))
    return torch.cat(entropies)


def rewrite(rows: MethodRows) -> Tensor:
    """Of `led_sglang.config.methods`."""
    logits, _ = confident_logits(
        rows.final_logits,
        rows.latents,
        rows.column("num_layers", torch.int64),
        rows.head,
        rows.unedited_logits,
        rows.edits,
        rows.column("select_method", torch.int64),
        rows.uniform() >= rows.column("p", torch.float32),
    )
    return logits
