"""The policy that a step of LED drew from: each candidate's probability, the coin summed out."""

import torch
from torch import Tensor

from led_sglang.ops.types import LedRows, LedStep


def led_probs(step: LedStep, rows: LedRows) -> Tensor:
    """Probabilities of `step.candidate_ids`, (R, K) float32; 0 = never drawn. Valid where `rows.trace` and `step.ok`.

    Per row, c = confidence, or 0 without the exploit branch::

        c * exploit + (1 - c) * explore                                          its logarithm is `step.logprob`
        c * onehot(argmax exploit) + (1 - c) * onehot(argmax explore)            where greedy: what the coin leaves open

    A sum of products, not an interpolation: a candidate that either branch may draw does not round to 0. No host sync.
    """
    share = torch.where(rows.exploit, step.confidence, 0.0)[:, None]  # (R, 1)
    exploit, explore = step.exploit_probs, step.explore_probs
    if rows.any_greedy:
        exploit, explore = (_settled(probs, rows.greedy) for probs in (exploit, explore))
    return share * exploit + (1 - share) * explore


def _settled(probs: Tensor, greedy: Tensor) -> Tensor:
    """Rows of `greedy` put all on their first largest candidate: (R, K), (R,)."""
    largest = torch.zeros_like(probs).scatter_(1, probs.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy[:, None], largest, probs)
