"""The engine's draws without work for each token of the vocabulary.

A filtered draw sorts the vocabulary: 14 ms for each row of 151,936 tokens. An unfiltered one takes a random number for
each token: 4 ms a row.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["draw", "install", "suffices"]

NUM_SORTED = 1024  # most probable tokens
PART = 1024  # tokens that are summed before one of them is looked for


def install() -> None:
    """Wrap SGLang's torch samplers; the filtered one where it takes the number of columns that matter."""
    from sglang.srt.layers import sampler

    draw_seeded = sampler.sampling_from_probs_torch
    draw_filtered = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    if hasattr(draw_seeded, "__wrapped__"):
        return

    @wraps(draw_seeded)
    def draw_by_parts(probs: Tensor, sampling_seed: Tensor | None = None, positions: Tensor | None = None) -> Any:
        if sampling_seed is None:
            return draw(probs).to(torch.int32)
        return draw_seeded(probs, sampling_seed, positions)

    sampler.sampling_from_probs_torch = draw_by_parts
    if "max_top_k" not in inspect.signature(draw_filtered).parameters:  # SGLang 0.5.17
        return

    @wraps(draw_filtered)
    def draw_from_few(
        probs: Tensor,
        top_ks: Tensor,
        top_ps: Tensor,
        min_ps: Tensor,
        need_min_p_sampling: bool,
        *args: Any,
        **more: Any,
    ) -> Any:
        most = more.get("max_top_k")
        if (most is None or most > NUM_SORTED) and probs.shape[1] > 4 * NUM_SORTED:
            head = probs.topk(NUM_SORTED, dim=-1).values
            if suffices(head, top_ks, top_ps, min_ps if need_min_p_sampling else None):
                more["max_top_k"] = NUM_SORTED
        return draw_filtered(probs, top_ks, top_ps, min_ps, need_min_p_sampling, *args, **more)

    sampler.top_k_top_p_min_p_sampling_from_probs_torch = draw_from_few


def draw(probs: Tensor) -> Tensor:
    """A token for each row of (rows, V) weights, which need no sum of 1: (rows,) int64.

    A uniform number chooses a part of the vocabulary and then a token of it, each in float64 over sums of PART float32
    weights. Raises RuntimeError where a row has no positive sum, as `torch.multinomial` does.
    """
    vocab_size = probs.shape[1]
    whole = vocab_size // PART * PART
    sums = [probs[:, :whole].reshape(len(probs), whole // PART, PART).sum(-1), probs[:, whole:].sum(-1, keepdim=True)]
    parts = torch.cat(sums, 1).double()
    total = parts.sum(-1, keepdim=True)
    if not bool(((total > 0) & total.isfinite()).all()):
        raise RuntimeError("probabilities without a positive, finite sum: there is nothing to draw from")
    part, left = _first_above(parts, torch.rand(len(probs), 1, dtype=torch.float64) * total)
    columns = part * PART + torch.arange(PART)
    weights = probs.gather(1, columns.clamp(max=vocab_size - 1)).double()
    token, _ = _first_above(weights.masked_fill(columns >= vocab_size, 0.0), left)
    return (part * PART + token).flatten()


def _first_above(weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The first index at which the running sum exceeds the target, and what is left of the target there.

    Both (rows, 1). weights: (rows, n) float64, none negative. A target that rounding put at the
    sum or beyond it finds the last weight that is not zero.
    """
    sums = weights.cumsum(-1)
    targets = torch.minimum(targets, torch.nextafter(sums[:, -1:], torch.zeros(())))
    index = torch.searchsorted(sums, targets, right=True)
    return index, targets - (sums - weights).gather(1, index)


def suffices(head: Tensor, top_ks: Tensor, top_ps: Tensor, min_ps: Tensor | None) -> bool:
    """Whether no row's filters leave a token behind its `head`: (rows, n) probabilities, the largest first.

    top_ks, top_ps, min_ps: (rows,). The sums are the sampler's own, so that what is left out is what it would drop.
    """
    is_enough = (top_ks <= head.shape[1]) | (head.cumsum(-1)[:, -1] > top_ps)
    if min_ps is not None:
        is_enough |= head[:, -1] < head[:, 0] * min_ps
    return bool(is_enough.all())
