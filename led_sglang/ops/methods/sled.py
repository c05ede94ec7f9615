"""SLED (arXiv 2411.02433): move the final logits to where they have been moving from the early layers on."""

import torch
from torch import Tensor

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.methods.rows import MethodRows
from led_sglang.ops.methods.vocabulary import layers_at_once, vocabulary_logits, without_padding
from led_sglang.ops.types import Head


def sled_logits(
    final_logits: Tensor,
    early: Tensor,
    evolution_rate: Tensor,
    evolution_scale: Tensor,
    head: Head,
    max_scale: int,
    unedited_logits: Tensor | None = None,
    edits: LogitEdits | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits that the engine then samples with the request's own temperature, top-p and top-k.

    Per row, all at temperature 1, with candidates x = the evolution_scale largest final_logits, of equals the smaller
    id; i is one of them, and cos is over the vocabulary::

        z      = final_logits;     p    = softmax(z)
        z[n]   = head(early[n]);   q[n] = softmax(z[n])           no final norm; -inf where final_logits is -inf
        m[n,i] = max(cos(z[n] - z, q[n] - onehot(i)), 0)^2        0 where one of the two vectors is 0
        t[i]   = sum_n m[n,i] / sum_n sum_j m[n,j]
        logits = z[i] - evolution_rate * (p[i] - t[i])            -inf beside the candidates

    With edits, penalties and bias that `final_logits` have and `unedited_logits` (R, V) have not: z is unedited_logits
    (-inf where final_logits is), so that no bias decides where the layers point; the candidates stay those of
    final_logits, or banned tokens could be the only ones; the evolved logits are edited.

    final_logits (R, V) before temperature; early (E, R, H): un-normed residual streams in the model's dtype;
    evolution_rate (R,) float32; evolution_scale (R,) int64 in 1..max_scale, which is host-known and may exceed V.

    Returns logits (R, V) float32 and is_evolved (R,) bool. Rows whose final logits or early layers are not finite, and
    rows none of whose layers points to a candidate (every m is 0), get their final_logits back and False. Nothing is
    modified; no host sync; with a sharded head every rank makes the same collectives: one for each
    LAYER_ELEMENTS (`vocabulary`) of early logits.
    """
    num_layers, num_rows = early.shape[:2]
    if num_layers == 0 or num_rows == 0:
        return final_logits.float(), torch.zeros(num_rows, dtype=torch.bool, device=final_logits.device)
    final = limited = without_padding(final_logits, head)
    is_forbidden = limited == -torch.inf
    if unedited_logits is not None:
        final = without_padding(unedited_logits, head).masked_fill(is_forbidden, -torch.inf)
    ids = largest_ids(limited, max_scale)  # (R, K)
    is_candidate = torch.arange(ids.shape[1], device=ids.device) < evolution_scale[:, None]
    is_candidate &= limited.gather(1, ids) > -torch.inf
    weights, is_finite = alignments(final, early, ids, is_forbidden, head)
    weights = weights.where(is_candidate, 0.0)
    total = weights.sum(-1, keepdim=True)

    step = final.softmax(-1).gather(1, ids) - weights / total  # p - t
    evolved = final.gather(1, ids) - evolution_rate[:, None] * step
    if edits is not None:
        edits.apply_at(evolved[None], ids)
    evolved = evolved.where(is_candidate, -torch.inf)
    ok = is_finite & (total[:, 0] > 0) & evolved.amax(-1).isfinite() & limited.amax(-1).isfinite()
    logits = torch.full_like(final, -torch.inf).scatter_(1, ids, evolved)
    return torch.where(ok[:, None], logits, final_logits.float()), ok


def largest_ids(logits: Tensor, num: int) -> Tensor:
    """Of (R, V) float32 the ids of the `num` largest, or of all, largest first, of equals the smaller id: (R, K)."""
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: one zero
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the floats
    keys = order.mul_(1 << 32).sub_(torch.arange(logits.shape[1], device=logits.device))
    return keys.topk(min(num, logits.shape[1]), dim=-1).indices


def alignments(final: Tensor, early: Tensor, ids: Tensor, is_forbidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Sum over the layers (E, R, H) of m of each candidate (R, K): (R, K); and which rows' layers are finite: (R,)."""
    squares, lengths = [], []
    for layers in torch.split(early, layers_at_once(final)):
        logits = vocabulary_logits(layers.flatten(0, 1), head, final.shape[1]).view(-1, *final.shape)  # (C, R, V)
        logits = logits.masked_fill_(is_forbidden, -torch.inf)
        change = (logits - final).masked_fill_(is_forbidden, 0.0)
        length = torch.linalg.vector_norm(change, dim=-1, keepdim=True)  # (C, R, 1)
        cosines = products(logits, change, ids) / length
        squares.append(torch.where(cosines > 0, cosines.square(), 0.0))
        lengths.append(length[..., 0])
    # Layer by layer in one row's own memory: a sum whose order is the same in a batch of any size.
    return torch.cat(squares).permute(1, 2, 0).contiguous().sum(-1), torch.cat(lengths).isfinite().all(0)


def products(logits: Tensor, change: Tensor, ids: Tensor) -> Tensor:
    """a . (q - onehot(i)) / |q - onehot(i)| for a = change (C, R, V), q = softmax(logits), i in ids (R, K): (C, R, K).

    Both inputs are overwritten. q is kept as the share of the likeliest token and the distribution of the others: where
    the layer is sure, q - onehot(i) of its own token is as short as the others' share, but its direction is not.
    """
    ids = ids.expand(len(logits), -1, -1)
    top_logit, top = logits.max(-1, keepdim=True)
    change_at_ids, change_at_top = change.gather(-1, ids), change.gather(-1, top)
    others = logits.scatter_(-1, top, -torch.inf)
    share = (others.logsumexp(-1, keepdim=True) - top_logit).sigmoid()  # of the others together: 1 - q[top]
    others = others.softmax(-1)
    probs = share * others.gather(-1, ids)  # q[i] beside the top
    square = torch.linalg.vector_norm(others, dim=-1, keepdim=True).square()
    mean = change.mul_(others).sum(-1, keepdim=True)
    dot = share * mean + (1 - share) * change_at_top - change_at_ids
    norm = share.square() * square + (1 - share).square() - 2 * probs + 1
    is_top = ids == top
    return torch.where(is_top, mean - change_at_top, dot) / torch.where(is_top, square + 1, norm).sqrt()


def rewrite(rows: MethodRows) -> Tensor:
    """Of `led_sglang.config.methods`."""
    logits, _ = sled_logits(
        rows.final_logits,
        rows.latents,
        rows.column("evolution_rate", torch.float32),
        rows.column("evolution_scale", torch.int64),
        rows.head,
        rows.largest("evolution_scale"),
        rows.unedited_logits,
        rows.edits,
    )
    return logits
