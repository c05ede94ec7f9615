"""Trees of draft tokens: from a draft model's choices (EAGLE) and from a mask of ancestors (NGRAM).

A tree has n nodes; the root is node 0, the last token that is certain. `retrieve_next_token` is a node's first child,
`retrieve_next_sibling` the next child of its parent, -1 where there is none; parents come before their children, and
siblings in rising order. `retrieve_index` numbers the nodes of the whole batch. A node attends to the prefix and to
the nodes that its row of the mask names: its ancestors and itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from led_sglang.jit import jit

__all__ = ["build_tree", "reconstruct_tree"]


@jit
def _link(parents: Any, first_row: int, index: Any, next_token: Any, next_sibling: Any) -> None:
    """Children and siblings of one tree; parents: (n,), -1 for a root."""
    for node in range(len(parents)):
        index[node] = first_row + node
        next_token[node] = next_sibling[node] = -1
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] >= 0:
            next_sibling[node] = next_token[parents[node]]
            next_token[parents[node]] = node


@jit
def _reconstruct(mask: Any, lengths: Any, positions: Any, index: Any, next_token: Any, next_sibling: Any) -> None:
    num_rows, n = index.shape
    parents = np.empty(n, np.int64)
    for row in range(num_rows):
        for node in range(n):
            parents[node], depth = -1, 0
            for ancestor in range(node):
                if mask[row, node, ancestor]:
                    parents[node] = ancestor  # the last one found is the nearest
                    depth += 1
            positions[row, node] = lengths[row] + depth
        _link(parents, row * n, index[row], next_token[row], next_sibling[row])


def reconstruct_tree(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """`sgl_kernel.speculative.reconstruct_indices_from_tree_mask`: everything that follows from the mask of ancestors.

    tree_mask: (batch * n * n,) bool; verified_seq_len: (batch,) int64; written: positions (batch * n,) int64 and the
    three links, (batch, n) int64.
    """
    n = draft_token_num
    _reconstruct(
        tree_mask.view(batch_size, n, n).numpy(),
        verified_seq_len.long().numpy(),
        positions.view(batch_size, n).numpy(),
        retrieve_index.numpy(),
        retrieve_next_token.numpy(),
        retrieve_next_sibling.numpy(),
    )


@jit
def _parents(chosen: Any, parent_list: Any, topk: int, parents: Any) -> None:
    """The parent of each node of one tree.

    chosen: (n - 1,), the candidates that became nodes 1 to n-1. Candidate c has the parent candidate
    parent_list[c // topk]; the first topk candidates are children of the root.
    """
    parents[0] = -1
    for node in range(1, len(parents)):
        group, parents[node] = chosen[node - 1] // topk, 0
        if group > 0:
            for other in range(len(chosen)):
                if chosen[other] == parent_list[group]:
                    parents[node] = other + 1
                    break


@jit
def _build(
    chosen: Any, parent_list: Any, lengths: Any, topk: int, mask: Any, widths: Any, positions: Any, links: Any
) -> None:
    num_rows, n = positions.shape
    parents = np.empty(n, np.int64)
    start = 0  # of a row's block in the flat mask: n rows of `width`, the tree in the last n columns of each
    for row in range(num_rows):
        width = widths[row]
        _parents(chosen[row], parent_list[row], topk, parents)
        for node in range(n):
            tree = mask[start + (node + 1) * width - n : start + (node + 1) * width]
            tree[:] = False
            depth, ancestor = -1, node
            while ancestor >= 0:
                tree[ancestor] = True
                depth, ancestor = depth + 1, parents[ancestor]
            positions[row, node] = lengths[row] + depth
        _link(parents, row * n, links[0][row], links[1][row], links[2][row])
        start += n * width


def build_tree(
    parent_list: Tensor,
    top_scores_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int,
) -> None:
    """SGLang's `build_tree_kernel_efficient`: the tree of the n-1 best candidates of a draft of several steps.

    parent_list: (batch, groups of topk candidates) int64, empty after one step; top_scores_index: (batch, n - 1) int64,
    rising. Written: tree_mask, flat bool, a block of n rows for each request: of length + n columns in mode 0
    (FULL_MASK, whose prefix columns stay as they were), of n in mode 1 (QLEN_ONLY); positions (batch * n,) int64; the
    three links, (batch, n) int64. Raises ValueError for another mode.
    """
    if tree_mask_mode not in (0, 1):
        raise ValueError(f"tree_mask_mode is {tree_mask_mode}, legal are 0 (FULL_MASK) and 1 (QLEN_ONLY)")
    n, lengths = num_verify_tokens, seq_lens.long().numpy()
    num_groups = max(1, parent_list.shape[1])
    parents = parent_list.long().numpy() if parent_list.numel() else np.zeros((len(lengths), num_groups), np.int64)
    _build(
        top_scores_index.long().numpy(),
        parents,
        lengths,
        topk,
        tree_mask.numpy(),
        lengths * (tree_mask_mode == 0) + n,
        positions.view(-1, n).numpy(),
        (retrieve_index.numpy(), retrieve_next_token.numpy(), retrieve_next_sibling.numpy()),
    )
