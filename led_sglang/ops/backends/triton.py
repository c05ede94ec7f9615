"""The backend of a GPU: the step and its surroundings in a kernel each, for a small batch waits for launches.

Importing this module imports Triton, which a machine without a GPU need not have.
"""

import torch
from torch import Tensor

from led_sglang.ops import warm_up
from led_sglang.ops.backends import one_pass, triton_step
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.kernels import draft_tree, filtered_draw, lm_head, one_pass_mask, row_inputs
from led_sglang.ops.kernels.common import WIDTHS, is_interpreted, sizes_up_to
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import (
    Counters,
    Filters,
    Head,
    KnownLse,
    Latents,
    LedRows,
    LedStep,
    RowInputs,
    RowMeta,
    StepInputs,
    Support,
)


class TritonBackend(TorchBackend):
    """See `led_sglang.ops.backend.Backend`. A step that LED does not decide is counted by torch."""

    name = public_name = "triton"
    coin_threshold = one_pass.COIN_THRESHOLD

    def __init__(self) -> None:
        super().__init__(allows_dynamic_shapes=False)

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """A CPU runs kernels under Triton's interpreter only."""
        return device.type != "cpu" or is_interpreted()

    def warm_up(
        self,
        head: Head,
        latents: Tensor,
        vocab_size: int,
        max_rows: int,
        max_top_k: int,
        tables: ThinkingTables | None = None,
    ) -> None:
        widths = [min(width, max_top_k) for width in sizes_up_to(max_top_k, WIDTHS)]
        warm_up.run_with_head(self, head, latents, vocab_size, widths, lm_head.SMALL_TILE.rows, tables)

    def row_inputs(
        self, meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor
    ) -> RowInputs:
        return row_inputs.row_inputs(meta, slots, positions, lengths, states)

    def one_pass_mask(self, rows: LedRows, inputs: StepInputs, index: Tensor | None, mask: Tensor, tau: Tensor) -> None:
        one_pass_mask.fill_mask(rows, inputs, self.coin_threshold, index, mask, tau)

    def head_pass(self, hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
        self._check_one_pass(head)
        return lm_head.head_sums(hidden, lm_head.LatentRows(latents, mask, tau), head, lse)

    def draft_tree(self, drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
        return draft_tree.draft_tree(drafts, root_states, tables)

    def step(
        self,
        final_logits: Tensor,
        latents: Latents,
        head: Head,
        rows: LedRows,
        inputs: StepInputs,
        *,
        known_lse: KnownLse | None = None,
        edits: LogitEdits | None = None,
        draws_inactive: bool = False,
        tree: DraftTree | None = None,
    ) -> LedStep:
        return triton_step.led_step(final_logits, latents, head, rows, inputs, known_lse, edits, tree)

    def write_tokens(
        self, meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep, draws_inactive: bool = False
    ) -> None:
        row_inputs.write_tokens(meta, token_ids, inputs, step)

    def advance(
        self, meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor
    ) -> None:
        row_inputs.advance(meta, tables, states, inputs, token_ids)

    def count(
        self, inputs: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters
    ) -> Tensor:
        if step is None:
            return super().count(inputs, step, has_failed, method, counters)
        return row_inputs.pack_flags(inputs, step, method, counters)

    def softmax_rows(self, logits: Tensor, rows: Tensor, skip: Tensor, tau: Tensor) -> Tensor:
        return filtered_draw.softmax_rows(logits, rows, skip, tau)

    def sample_filtered(
        self, probs: Tensor, rows: Tensor, skip: Tensor, uniform: Tensor, filters: Filters
    ) -> tuple[Tensor, Support]:
        return filtered_draw.sample_filtered(probs, rows, skip, uniform, filters)
