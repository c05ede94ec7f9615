"""Soft Thinking (arXiv 2505.15778) and its Gumbel variant (2508.03440): a weighted mixture instead of one token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import entr

SMALLEST_UNIFORM = 2.0**-53  # Gumbel noise between -3.6 and 36.7, and never infinite
LARGEST_UNIFORM = 1 - 2.0**-53


@dataclass(frozen=True)
class SoftStep:
    """One soft step. Rows that are not `ok` carry weight 1 on some valid id, and an entropy without meaning."""

    ids: Tensor  # (R, K) int64, heaviest first; some valid id where the weight is zero
    weights: Tensor  # (R, K) float32, sum 1, zero beyond the row's max_topk and for forbidden tokens
    entropy: Tensor  # (R,) float32, nats, of the full posterior
    ok: Tensor  # (R,) bool: False = non-finite input, use the engine's token


@dataclass(frozen=True)
class Filters:
    """The requests' own filters, for rows that apply them before the mixture."""

    top_k: Tensor  # (R,) int64; the vocabulary's size or more: none
    top_p: Tensor  # (R,) float32 in (0, 1]
    min_p: Tensor  # (R,) float32 in [0, 1]
    is_first: Tensor  # (R,) bool: False = the row's filters do not act on its mixtures

    def keep(self, logprobs: Tensor, num_columns: int) -> Tensor:
        """Which of the `num_columns` most probable tokens of (R, V) remain: (R, num_columns) bool, the first always."""
        probs = logprobs.exp().sort(-1, descending=True).values  # (R, V)
        rank = torch.arange(probs.shape[1], device=probs.device)
        kept = torch.where(rank < self.top_k[:, None], probs, 0.0)
        before = kept.cumsum(-1) - kept  # the mass of more probable tokens
        is_nucleus = (before < self.top_p[:, None] * kept.sum(-1, keepdim=True)) & (kept > 0)
        is_kept = is_nucleus & (probs >= self.min_p[:, None] * probs[:, :1])
        return (is_kept | (rank == 0) | ~self.is_first[:, None])[:, :num_columns]


def soft_mixture(
    final_logits: Tensor,
    temperature: Tensor,
    greedy: Tensor,
    max_topk: Tensor,
    gumbel_temperature: Tensor,
    noise: Tensor | None,
    max_k: int,
    filters: Filters | None = None,
) -> SoftStep:
    """The tokens whose embeddings are mixed into the next input, and their weights.

    Per row, with tau = 1 where greedy and `temperature` elsewhere::

        p       = softmax(final_logits / tau)                        full vocabulary; entropy is H(p)
        x       = top-k of p, k = max_topk, heaviest first; with filters those that remain of them
        weights = p[x] / sum p[x]                                    gumbel_temperature = 0, or no noise
        weights = softmax((log p[x] + g) / gumbel_temperature)       elsewhere, sorted again heaviest first
        g[i]    = -log(-log(noise[i])),  noise[i] kept inside [2^-53, 1 - 2^-53]

    final_logits (R, V), any float type, before temperature, -inf = forbidden; temperature, gumbel_temperature (R,)
    float32; greedy (R,) bool; max_topk (R,) int64 in 1..max_k; noise (R, K) uniforms in [0, 1), float64 for all their
    bits: noise[i] belongs to the i-th most probable token; max_k = K, host-known. V may be smaller than K.
    `filters`: None where no row wants its own to act here. They act as in the authors' release: top-k, then top-p on
    what that leaves, then min-p.

    Nothing is modified; no host sync. Needs no head, so ranks with equal logits and noise agree without a collective.
    """
    tau = temperature.masked_fill(greedy, 1.0)[:, None]
    logprobs = (final_logits.float() / tau).log_softmax(-1)  # (R, V)
    entropy = entr(logprobs.exp()).sum(-1)
    scores, ids = logprobs.topk(min(max_k, logprobs.shape[1]), dim=-1)  # (R, K)
    if filters is not None:
        scores = scores.masked_fill(~filters.keep(logprobs, scores.shape[1]), -torch.inf)
    num_short = (0, max_k - scores.shape[1])
    if num_short[1]:
        scores, ids = F.pad(scores, num_short, value=-torch.inf), F.pad(ids, num_short)
    rank = torch.arange(max_k, device=ids.device)
    scores = scores.masked_fill(rank >= max_topk[:, None], -torch.inf)
    if noise is not None:
        noisy = perturbed(scores, gumbel_temperature[:, None], noise)
        scores, order = noisy.sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    weights = scores.softmax(-1)
    ok = entropy.isfinite() & (weights[:, 0] > 0)
    return SoftStep(ids, torch.where(ok[:, None], weights, (rank == 0).to(weights.dtype)), entropy, ok)


def perturbed(scores: Tensor, gumbel_temperature: Tensor, noise: Tensor) -> Tensor:
    """Gumbel noise on the rows that want it. In float64: in float32 a uniform close to 1 would round to 1."""
    gumbel = -(-noise.double().clamp(SMALLEST_UNIFORM, LARGEST_UNIFORM).log()).log()
    noisy = ((scores + gumbel) / gumbel_temperature).float()
    return torch.where(gumbel_temperature > 0, noisy, scores)


def cold_stop(entropy: Tensor, count: Tensor, threshold: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Close the thinking phase after `length` steps in a row with an entropy below `threshold`.

    entropy, threshold (R,) nats; count (R,) int64: such steps so far; length (R,) int64. Returns the new count and stop
    (R,) bool, which stays True while the entropy stays low. An entropy that is not a number starts the count again.
    """
    count = (count + 1).where(entropy < threshold, 0)
    return count, count >= length
