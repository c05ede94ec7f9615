"""What a verification accepts: the engine's outcome, and what LED makes of it. Shapes do not depend on data."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from led_sglang.integration.scheduler.speculation.nodes import VerifyInputs


class Outcome(NamedTuple):
    """As the engine's `eagle_sample` returns it. D: longest path."""

    predict: Tensor  # (T,) int32, the token that follows each node of a path
    accept_lens: Tensor  # (B,) int32, nodes of a path, the root included
    accept_index: Tensor  # (B, D) int32, the path as token rows, -1 behind it

    def write(self, other: "Outcome") -> None:
        """Into the other's tensors."""
        for theirs, ours in zip(other, self, strict=True):
            if theirs is not ours:
                theirs.copy_(ours)

    @property
    def is_path(self) -> Tensor:
        """(B, D) bool."""
        steps = torch.arange(self.accept_index.shape[1], device=self.accept_index.device)
        return steps < self.accept_lens[:, None]

    @property
    def path(self) -> Tensor:
        """(B, D) int64, token rows; any one behind the path."""
        return self.accept_index.clamp_min(0).long()


@dataclass(frozen=True)
class Verdict:
    """LED's tokens at the nodes that it decides."""

    token_ids: Tensor  # (B, N) int64; -1: not decided by LED

    def apply(self, inputs: VerifyInputs, stock: Outcome) -> Outcome:
        """Our requests' share of the outcome becomes LED's where it decides the root; others keep the engine's.

        The path never enters a node that LED does not decide, and a path of the engine's ends before the first node
        that LED decides: that token is the last one accepted, and the next verification begins there.
        """
        own = self._walk(inputs, stock)
        num_requests, num_nodes = self.token_ids.shape
        is_decided = self.token_ids >= 0
        is_own = is_decided[:, 0] & inputs.nodes.is_ours
        starts = torch.arange(num_requests, device=is_own.device)[:, None] * num_nodes
        local = (stock.path - starts).clamp(0, num_nodes - 1)
        steps = torch.arange(local.shape[1], device=is_own.device)
        is_theirs = stock.is_path & is_decided.gather(1, local) & inputs.nodes.is_ours[:, None]
        end = torch.where(is_theirs, steps, local.shape[1]).amin(1).to(stock.accept_lens.dtype)
        accept_lens = torch.where(is_own, own.accept_lens, torch.minimum(stock.accept_lens, end))
        accept_index = torch.where(is_own[:, None], own.accept_index, stock.accept_index)
        accept_index = accept_index.masked_fill(steps >= accept_lens[:, None], -1)
        predict = torch.where(is_own[:, None], own.predict.view(-1, num_nodes), stock.predict.view(-1, num_nodes))
        return Outcome(predict.reshape(-1), accept_lens, accept_index)

    def _walk(self, inputs: VerifyInputs, stock: Outcome) -> Outcome:
        """The longest path on which the drafts equal the tokens, by the engine's own function for greedy drafts."""
        from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_func

        drafts, is_decided = inputs.tree.drafts, self.token_ids >= 0
        predict, accept_index, num_drafts = verify_tree_greedy_func(
            predicts=torch.zeros_like(stock.predict),
            accept_index=torch.full_like(stock.accept_index, -1),
            accept_token_num=torch.zeros_like(stock.accept_lens),
            candidates=drafts.token_ids.masked_fill(~is_decided, -1),  # equals no token: the path does not go there
            retrieve_index=inputs.nodes.number.view(self.token_ids.shape),
            retrieve_next_token=drafts.first_child,
            retrieve_next_sibling=drafts.next_sibling,
            target_predict=self.token_ids.clamp_min(0),
            topk=-1,
        )
        return Outcome(predict, num_drafts + 1, accept_index)
