"""Plain sampling with our own noise: for rows outside their phase whose request named a seed."""

import torch
from torch import Tensor


def sample_filtered(
    probs: Tensor, top_ks: Tensor, top_ps: Tensor, min_ps: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample from `probs` after top-k, top-p and min-p, applied jointly as the engine's PyTorch backend does.

    probs: (R, V) float; top_ks: (R,) int; top_ps, min_ps: (R,) float; uniform: (R,) in [0, 1). Returns the tokens,
    (R,) int64, and what they were drawn from, likeliest first: all ids, (R, V) int64, and their weights, (R, V), of
    any sum, 0 where dropped.
    """
    sorted_probs, sorted_ids = probs.sort(dim=-1, descending=True)  # (R, V)
    before = sorted_probs.cumsum(-1) - sorted_probs
    rank = torch.arange(probs.shape[-1], device=probs.device)
    dropped = (rank >= top_ks.view(-1, 1)) | (before > top_ps.view(-1, 1))
    dropped |= sorted_probs < sorted_probs[:, :1] * min_ps.view(-1, 1)
    weights = sorted_probs.masked_fill(dropped, 0.0)
    cdf = weights.double().cumsum(-1)
    picked = (cdf <= uniform.view(-1, 1) * cdf[:, -1:]).sum(-1).clamp_(max=probs.shape[-1] - 1)  # (R,)
    return sorted_ids.gather(1, picked.view(-1, 1)).view(-1), sorted_ids, weights
