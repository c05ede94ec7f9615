"""Which draft tokens of a tree are accepted: by the target's arg-max, or by sampling from its distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from led_sglang.jit import jit

__all__ = ["top_k_renorm_prob", "top_p_renorm_prob", "tree_speculative_sampling_target_only", "verify_tree_greedy"]


@jit
def _verify_greedy(
    predicts: Any, accept_index: Any, num_accepted: Any, tokens: Any, next_token: Any, next_sibling: Any, target: Any
) -> None:
    num_rows, n = tokens.shape
    for row in range(num_rows):
        node, depth = 0, 0
        accept_index[row, 0] = row * n
        while True:
            chosen = target[row, node]
            predicts[row, node] = chosen
            child = next_token[row, node] if depth + 1 < accept_index.shape[1] else -1
            while child != -1 and tokens[row, child] != chosen:
                child = next_sibling[row, child]
            if child == -1:
                break
            node, depth = child, depth + 1
            accept_index[row, depth] = row * n + node
        num_accepted[row] = depth


def verify_tree_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    target_predict: Tensor,
    topk: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """SGLang's `verify_tree_greedy_func`: accept as long as a child is the token that the target chooses at its parent.

    candidates, target_predict and the links: (batch, n) int64. Written, int32: predicts (batch * n,), the target's
    token of each accepted node; accept_index (batch, depth), the accepted nodes, the root first; accept_token_num
    (batch,), their number without the root. Returns these three.
    """
    _verify_greedy(
        predicts.view(candidates.shape).numpy(),
        accept_index.numpy(),
        accept_token_num.numpy(),
        candidates.numpy(),
        retrieve_next_token.numpy(),
        retrieve_next_sibling.numpy(),
        target_predict.numpy(),
    )
    return predicts, accept_index, accept_token_num


@jit
def _draw(target: Any, draft: Any, has_draft: bool, uniform: float) -> int:
    """A token of max(target - draft, 0), which need not sum to one; of the target where rounding left nothing."""
    total = 0.0
    for token in range(len(target)):
        total += max(target[token] - draft[token] * has_draft, 0.0)
    goal, seen, drawn = uniform * total, 0.0, -1
    for token in range(len(target)):
        mass = target[token] - draft[token] * has_draft
        if mass > 0:
            seen += mass
            drawn = token
            if seen > goal:
                break
    return drawn if drawn >= 0 else target.argmax()


@jit
def _verify_sampled(
    predicts: Any,
    accept_index: Any,
    num_accepted: Any,
    tokens: Any,
    links: Any,
    uniforms: Any,
    last_uniforms: Any,
    target: Any,
    draft: Any,
    thresholds: Any,
) -> None:
    (num_rows, n), max_depth = tokens.shape, accept_index.shape[1]
    next_token, next_sibling = links
    for row in range(num_rows):
        node, depth = 0, 0
        accept_index[row, 0] = row * n
        while depth + 1 < max_depth:
            mass, child = 0.0, next_token[row, node]
            while child != -1:
                token = tokens[row, child]
                own = target[row, node, token]
                mass += own
                if own > 0 and (uniforms[row, node] < mass / thresholds[1] or own >= thresholds[0]):
                    break
                draft[row, node, token] = own
                child = next_sibling[row, child]
            if child == -1:
                break
            predicts[row, node] = tokens[row, child]
            node, depth = child, depth + 1
            accept_index[row, depth] = row * n + node
        num_accepted[row] = depth
        has_draft = depth + 1 < max_depth
        predicts[row, node] = _draw(target[row, node], draft[row, node], has_draft, last_uniforms[row])


def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """The function of SGLang's `sampling.cuh`: with thresholds of 1, what is accepted has the target's distribution.

    Children of a node are accepted by one uniform number of that node: the one in whose share of the target's
    probability it falls. Where it falls in none, the node's token is drawn from what they left.

    candidates and the links: (batch, n) int64; uniform_samples: (batch, n), the last ones (batch,), in [0, 1);
    target_probs, draft_probs: (batch, n, V) float32, the latter zeros in which rejected children are written. The
    outputs are those of `verify_tree_greedy`.
    """
    _verify_sampled(
        predicts.view(candidates.shape).numpy(),
        accept_index.numpy(),
        accept_token_num.numpy(),
        candidates.numpy(),
        (retrive_next_token.numpy(), retrive_next_sibling.numpy()),
        uniform_samples.numpy(),
        uniform_samples_for_final_sampling.numpy(),
        target_probs.numpy(),
        draft_probs.numpy(),
        (threshold_single, max(threshold_acc, 1e-9)),
    )


def _renormalized(probs: Tensor, is_kept: Tensor, order: Tensor) -> Tensor:
    """probs of the kept, which are given in the order of falling probability, with the sum 1."""
    kept = probs * torch.zeros_like(is_kept).scatter_(1, order, is_kept)
    return kept / kept.sum(-1, keepdim=True)


def top_k_renorm_prob(probs: Tensor, top_ks: Tensor) -> Tensor:
    """probs: (n, V) float32 of which row i keeps its top_ks[i] largest, of equal ones the first; the rest is 0."""
    order = probs.sort(dim=-1, descending=True, stable=True).indices
    return _renormalized(probs, torch.arange(probs.shape[1]) < top_ks.view(-1, 1), order)


def top_p_renorm_prob(probs: Tensor, top_ps: Tensor) -> Tensor:
    """probs: (n, V) float32 of which row i keeps the largest that together reach top_ps[i]; the rest is 0."""
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    return _renormalized(probs, ranked.cumsum(-1) - ranked <= top_ps.view(-1, 1), order)
