"""The engine's own sampling with our noise: for rows outside their phase whose request named a seed.

No sort of the vocabulary. A row's filters leave the first tokens in the order (larger probability, then smaller id): a
cut of that order is a probability, and how many of the tokens that have exactly this one are kept. It is found by
counting. Among the kept, ids are drawn in their own order.

Probabilities are summed as integers, in units of 2^-60. Such sums are exact whatever their order: a row's token is the
same bit for bit beside any other rows, in any chunks, and on every device.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from led_sglang.ops.constants import NO_LIMIT, ONE
from led_sglang.ops.types import Filters, Support

CHUNK_ELEMENTS = 1 << 21  # probabilities that torch works on at once where the host cannot look: some 24 bytes each
NUM_HALVINGS = 31  # of the patterns of float32 in [0, 1]


def sample_filtered(probs: Tensor, rows: Tensor, uniform: Tensor, filters: Filters) -> tuple[Tensor, Support]:
    """In torch, some rows at a time; see `led_sglang.ops.backend.Backend.sample_filtered`. No row is skipped."""
    parts = [_sample(clean, uniform[some], filters, rows[some]) for some, clean in _chunks(probs, rows)]
    tokens, floor, num_ties = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return tokens, Support(floor, num_ties)


def kept_tokens(probs: Tensor, rows: Tensor, support: Support, width: int) -> tuple[Tensor, Tensor]:
    """What the rows' tokens were drawn from, likeliest first, of cuts that keep at most `width` tokens.

    probs: (B, V); rows: (S,) int64, whose cuts they are. Returns ids, (S, width) int64, and their probabilities,
    (S, width) float32: 0 where nothing is left. No host sync.
    """
    width = min(width, probs.shape[1])
    parts = []
    for some, clean in _chunks(probs, rows):
        bits, floor = clean.view(torch.int32), support.floor[some, None]
        is_tie = bits == floor
        is_kept = is_tie.cumsum(-1, dtype=torch.int32) <= support.num_ties[some, None]
        is_kept.logical_and_(is_tie).logical_or_(bits > floor)
        parts.append(clean.mul_(is_kept).topk(width, dim=-1))
    weights, ids = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return ids, weights


def _chunks(probs: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time: where they are in `rows`, and their probabilities, (n, V) float32, ours to change."""
    chunk = max(1, CHUNK_ELEMENTS // max(probs.shape[1], 1))
    for start in range(0, max(len(rows), 1), chunk):
        some = slice(start, start + chunk)
        clean = probs.index_select(0, rows[some]).float()
        yield some, clean.masked_fill_((clean > 0).logical_and_(clean < 2).logical_not_(), 0.0).clamp_(max=1.0)


def units(probs: Tensor) -> Tensor:
    """Float32 in [0, 1] to int64, exactly down to 2^-60."""
    return (probs * float(ONE)).long()


def _sample(clean: Tensor, uniform: Tensor, filters: Filters, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk: tokens, floors and numbers of ties, (n,) each."""
    mass = units(clean)  # (n, V)
    floor, num_ties = rows.new_zeros(len(rows), 1, dtype=torch.int32), torch.full_like(rows, clean.shape[1])[:, None]
    if filters.is_any:
        floor, num_ties = _find_floor(clean, mass, filters, rows)
        bits = clean.view(torch.int32)
        is_tie = bits == floor
        is_kept = is_tie.cumsum(-1, dtype=torch.int32) <= num_ties
        mass.mul_(is_kept.logical_and_(is_tie).logical_or_(bits > floor))
    mass.cumsum_(-1)
    total = mass[:, -1:]
    target = (uniform[:, None].double() * total).long().minimum(total - 1)
    tokens = (mass <= target).sum(-1)
    return tokens, floor.squeeze(1), num_ties.squeeze(1)


def _find_floor(clean: Tensor, mass: Tensor, filters: Filters, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Floors and numbers of ties, (n, 1) each: the smallest pattern with less above it than the filters allow.

    What is above a pattern grows as the pattern falls: halving finds it.
    """
    bits = clean.view(torch.int32)
    top_k, top_p = filters.top_k[rows, None].long(), filters.top_p[rows, None]
    limit = units(top_p.double()).where(top_p < 1, NO_LIMIT)
    peak = clean.amax(-1, keepdim=True)
    low, high = (peak * filters.min_p[rows, None]).view(torch.int32), peak.view(torch.int32)
    for _ in range(NUM_HALVINGS):
        middle = low + (high - low) // 2
        is_above = bits > middle
        fits = (is_above.sum(-1, keepdim=True) < top_k) & ((mass * is_above).sum(-1, keepdim=True) <= limit)
        low, high = low.where(fits, middle + 1), middle.where(fits, high)
    is_above = bits > high
    left, room = (is_above.sum(-1, keepdim=True) - top_k).neg_(), limit - (mass * is_above).sum(-1, keepdim=True)
    unit = units(high.view(torch.float32))
    return high, left.minimum(torch.where(unit > 0, room // unit.clamp_min(1) + 1, left))
