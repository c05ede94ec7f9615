"""Draft tokens under verification: a tree of nodes for each request, every node a token row of one step.

Node 0 of a request, the root, holds its last token; each other node holds a draft of the token that follows its
parent's. The step decides a token at every node, and the path along which the drafts equal these tokens is accepted.

Shape letters: `B` requests of the batch, `N` nodes of each, `T` = B * N token rows; node n of request b is token row
b * N + n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from led_sglang.ops.rows.automaton import ThinkingTables


@dataclass(frozen=True)
class Drafts:
    """The nodes of a batch, as the engine's tree builders write them: a link leads to a node behind it, -1: nowhere."""

    token_ids: Tensor  # (B, N) int64, as the next two
    first_child: Tensor
    next_sibling: Tensor


@dataclass(frozen=True)
class DraftTree:
    """What follows of them. Parents come before their children."""

    drafts: Drafts
    parents: Tensor  # (B, N) int64, nodes of the same request; -1: the root, and a node that nothing leads to
    states: Tensor  # (B, N) int64 of the thinking automaton, the node's own token included


def draft_tree(drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
    """In torch, for every device and graph-safe; see `led_sglang.ops.backend.Backend.draft_tree`."""
    token_ids = drafts.token_ids
    num_requests, num_nodes = token_ids.shape
    rows = torch.arange(num_requests, device=token_ids.device)
    # A column more, for links that lead nowhere.
    parents = torch.full((num_requests, num_nodes + 1), -1, dtype=torch.int64, device=token_ids.device)
    states = root_states[:, None].repeat(1, num_nodes)
    for node in range(num_nodes):
        parent = parents[:, node].clone()  # of one request it would overlap what is written below
        if node and tables is not None:
            before = states[rows, parent.clamp_min(0)]
            states[:, node] = torch.where(parent >= 0, tables.advance(before, token_ids[:, node]), root_states)
        for links, owner in ((drafts.first_child, torch.full_like(parent, node)), (drafts.next_sibling, parent)):
            target = links[:, node].long()
            parents[rows, torch.where(target > node, target, num_nodes)] = owner
    return DraftTree(drafts, parents[:, :num_nodes], states)


def reachable(tree: DraftTree, token_ids: Tensor, is_open: Tensor) -> Tensor:
    """Token rows that may still be accepted: (T,) bool.

    token_ids: (T,) int64, decided so far; is_open: (T,) bool, rows whose token is not decided yet. A node is out of
    reach where the token of one of its ancestors is decided and is not the draft that leads to the node.
    """
    num_requests, num_nodes = tree.drafts.token_ids.shape
    decided, is_open = token_ids.view(num_requests, num_nodes), is_open.view(num_requests, num_nodes)
    rows = torch.arange(num_requests, device=token_ids.device)
    found = torch.ones_like(is_open)
    for node in range(1, num_nodes):
        parent = tree.parents[:, node].clamp_min(0)
        leads_here = is_open[rows, parent] | (decided[rows, parent] == tree.drafts.token_ids[:, node])
        found[:, node] = found[rows, parent] & leads_here & (tree.parents[:, node] >= 0)
    return found.view(-1)
