"""DoLa (arXiv 2309.03883): contrast the final layer with the early layer that disagrees with it most."""

import torch
from torch import Tensor
from torch.special import entr

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.methods.rows import MethodRows
from led_sglang.ops.methods.vocabulary import layers_at_once, vocabulary_logits, without_padding
from led_sglang.ops.types import Head


def dola_logits(
    final_logits: Tensor,
    early: Tensor,
    candidates: Tensor,
    relative_top: Tensor,
    head: Head,
    unedited_logits: Tensor | None = None,
    edits: LogitEdits | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits that the engine then samples with the request's own temperature, top-p and top-k.

    Per row, all at temperature 1::

        p      = softmax(final_logits)
        q[e]   = softmax(head(early[e]))                          no final norm; -inf where final_logits is -inf
        M      = argmax_e JSD(p, q[e]) over candidates[e]         ties to the smallest e
        logits = log p - log q[M]  where p >= relative_top * max p,  -inf elsewhere and where final_logits is -inf

    With edits, penalties and bias that `final_logits` have and `unedited_logits` (R, V) have not: in M and in the
    contrast p is that of unedited_logits, so that no bias decides which layer is contrasted with; the limit of
    relative_top stays that of final_logits, or a banned token could be the only one left; the edits are applied to
    the contrast.

    final_logits (R, V) before temperature; early (E, R, H): un-normed residual streams in the model's dtype;
    candidates (R, E) bool; relative_top (R,) float32 in [0, 1]. A forbidden token (-inf) is forbidden in every layer,
    so that a grammar does not decide which layer looks most different.

    Returns logits (R, V) float32 and chosen (R,) int64, an index into E. Rows without a candidate and rows whose final
    logits, candidate layers or contrast are not finite get their final_logits back and chosen -1; layers that are no
    candidates of a row do not matter to it. Nothing is modified; no host sync; with a sharded head every rank makes the
    same collectives: one for each vocabulary.LAYER_ELEMENTS of early logits and one more.
    """
    num_layers, num_rows = early.shape[:2]
    if num_layers == 0 or num_rows == 0:
        return final_logits.float(), torch.full_like(candidates[:, :0].sum(-1), -1)
    final = without_padding(final_logits, head)
    is_forbidden = final == -torch.inf
    logprobs = limited = final.log_softmax(-1)
    if unedited_logits is not None:
        logprobs = without_padding(unedited_logits, head).masked_fill(is_forbidden, -torch.inf).log_softmax(-1)
    scores = divergences(logprobs.exp(), early, is_forbidden, head)  # (E, R)
    score, chosen = scores.masked_fill(~candidates.T, -torch.inf).max(0)  # NaN counts as largest

    hidden = early[chosen, torch.arange(num_rows, device=chosen.device)]  # (R, H)
    early_logits = vocabulary_logits(hidden, head, final.shape[1]).masked_fill(is_forbidden, -torch.inf)
    floor = limited.amax(-1, keepdim=True) + relative_top.log()[:, None]
    contrast = logprobs - early_logits.log_softmax(-1)
    if edits is not None:
        edits.apply(contrast)
    contrast = contrast.masked_fill(is_forbidden | (limited < floor), -torch.inf)
    ok = score.isfinite() & contrast.amax(-1).isfinite()
    return torch.where(ok[:, None], contrast, final_logits.float()), chosen.where(ok, -1)


def divergences(probs: Tensor, early: Tensor, is_forbidden: Tensor, head: Head) -> Tensor:
    """Jensen-Shannon divergence in nats of p (R, V) and each layer of (E, R, H): (E, R).

    The mean of both KLs to the average is the entropy of the average minus the average of the entropies.
    """
    entropy = entr(probs).sum(-1)
    scores = []
    for layers in torch.split(early, layers_at_once(probs)):
        logits = vocabulary_logits(layers.flatten(0, 1), head, probs.shape[1]).view(-1, *probs.shape)  # (C, R, V)
        layer_probs = logits.masked_fill(is_forbidden, -torch.inf).softmax(-1)
        average = entr(torch.lerp(layer_probs, probs.expand_as(layer_probs), 0.5)).sum(-1)
        scores.append(average - (entropy + entr(layer_probs).sum(-1)) / 2)
    return torch.cat(scores)


def rewrite(rows: MethodRows) -> Tensor:
    """Of `led_sglang.config.methods`."""
    limit = rows.column("relative_top", torch.float32)
    contrast, _ = dola_logits(
        rows.final_logits, rows.latents, rows.is_candidate, limit, rows.head, rows.unedited_logits, rows.edits
    )
    return contrast
