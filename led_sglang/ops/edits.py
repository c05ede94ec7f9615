"""Penalties and logit bias: what the engine does to the final layer's logits, done to every layer's.

A mixture of layers obeys a bias only if each of its layers does: -100 in the final layer alone leaves the token to the
latents. A layer whose tokens are lowered keeps the scale of its full vocabulary, as it does under a grammar: the other
tokens gain nothing, and a ban holds whatever the size of the layer's logits. Without the final norm they are several
times the final layer's, and a softmax after the bias would give the banned token back to a layer that is sure of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitEdits:
    """The edits of R rows, in the engine's order and with its arithmetic: scale(logit + additive) + bias.

    scale(z) is z * scaling where z < 0 and z / scaling elsewhere. The tables are (T, V) float32 over the full
    vocabulary, None = nothing to do; at least one is there. They are the batch's own and are read where they lie.
    """

    additive: Tensor | None  # minus frequency and presence penalties; -inf: a stop token before min_new_tokens
    scaling: Tensor | None  # > 0: repetition penalties, 1 = none
    bias: Tensor | None
    rows: Tensor | None = None  # (R,) int64: the row of the tables that each is; None: R = T, in order
    # (E,) int64, distinct: the rows that have edits, a promise that the others' parts of the tables change nothing;
    # None: every row may have some.
    edited: Tensor | None = None

    @property
    def num_rows(self) -> int:
        if self.rows is not None:
            return len(self.rows)
        return next(len(table) for table in (self.additive, self.scaling, self.bias) if table is not None)

    def take(self, index: Tensor | None) -> "LogitEdits":
        """Those of some rows, (N,) int64, which may come more than once; None: all."""
        if index is None:
            return self
        return replace(self, rows=index if self.rows is None else self.rows[index], edited=None)

    def apply(self, logits: Tensor, first_id: int = 0) -> Tensor:
        """Edit (J * R, width) or (J, R, width) float32 logits of tokens from `first_id` on in place; return them."""
        stop = first_id + logits.shape[-1]

        def part_of(table: Tensor) -> Tensor:
            columns = table[:, first_id:stop]
            return columns if self.rows is None else columns.index_select(0, self.rows)

        if logits.numel():
            self._edit(logits.view(-1, self.num_rows, logits.shape[-1]), part_of)
        return logits

    def apply_at(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Edit (J, R, K) float32 logits of the tokens (R, K) in place; return them."""

        def part_of(table: Tensor) -> Tensor:
            return table.gather(1, token_ids) if self.rows is None else table[self.rows[:, None], token_ids]

        self._edit(logits, part_of)
        return logits

    def _edit(self, logits: Tensor, part_of: Callable[[Tensor], Tensor]) -> None:
        if self.additive is not None:
            logits.add_(part_of(self.additive))
        if self.scaling is not None:
            scaling = part_of(self.scaling)
            logits.copy_(torch.where(logits < 0, logits * scaling, logits / scaling))
        if self.bias is not None:
            logits.add_(part_of(self.bias))


def edited_logprobs(logits: Tensor, tau: Tensor, edits: LogitEdits, first_id: int = 0) -> Tensor:
    """log p^l of whole layers, (..., R, V) as the unedited float32 logits, which are overwritten."""
    unedited_lse = (logits / tau).logsumexp(-1, keepdim=True)
    edited = edits.apply(logits, first_id).div_(tau)
    lost = (unedited_lse - edited.logsumexp(-1, keepdim=True)).clamp_min_(0.0)  # exactly 0 in a row without edits
    return edited.log_softmax(-1).sub_(lost)
