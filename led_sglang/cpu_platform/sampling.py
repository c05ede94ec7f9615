"""The engine's filtered draw without a sort of the vocabulary, which takes 14 ms for each row of 151,936 tokens."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from torch import Tensor

__all__ = ["install", "suffices"]

NUM_SORTED = 1024  # most probable tokens


def install() -> None:
    """Wrap SGLang's torch sampler, where it takes the number of columns that matter."""
    from sglang.srt.layers import sampler

    draw = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    if "max_top_k" not in inspect.signature(draw).parameters or hasattr(draw, "__wrapped__"):
        return

    @wraps(draw)
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
        return draw(probs, top_ks, top_ps, min_ps, need_min_p_sampling, *args, **more)

    sampler.top_k_top_p_min_p_sampling_from_probs_torch = draw_from_few


def suffices(head: Tensor, top_ks: Tensor, top_ps: Tensor, min_ps: Tensor | None) -> bool:
    """Whether no row's filters leave a token behind its `head`: (rows, n) probabilities, the largest first.

    top_ks, top_ps, min_ps: (rows,). The sums are the sampler's own, so that what is left out is what it would drop.
    """
    is_enough = (top_ks <= head.shape[1]) | (head.cumsum(-1)[:, -1] > top_ps)
    if min_ps is not None:
        is_enough |= head[:, -1] < head[:, 0] * min_ps
    return bool(is_enough.all())
