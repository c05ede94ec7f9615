"""The backend in plain torch, for every device; what is served on a GPU where the kernels are not, and its variants."""

from collections.abc import Callable

import torch
from torch import Tensor

from led_sglang.ops import baseline, reference
from led_sglang.ops.backends import one_pass, torch_step
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows import draft_tree, filtered_draw, stats
from led_sglang.ops.rows import inputs as row_functions
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


class TorchBackend:
    """See `led_sglang.ops.backend.Backend`."""

    name, public_name = "torch", "fused"
    supports_one_pass = True
    draws_inactive = False

    def __init__(self, allows_dynamic_shapes: bool) -> None:
        self.allows_dynamic_shapes = allows_dynamic_shapes

    @property
    def coin_threshold(self) -> float:
        """Fixed shapes compute all rows anyway: none is left out, and none needs a second pass."""
        return one_pass.COIN_THRESHOLD if self.allows_dynamic_shapes else 1.0

    def prepare(self) -> None:
        """Nothing is compiled."""

    def warm_up(
        self,
        head: Head,
        latents: Tensor,
        vocab_size: int,
        max_rows: int,
        max_top_k: int,
        tables: ThinkingTables | None = None,
    ) -> None:
        """Nothing is compiled."""

    def row_inputs(
        self, meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor
    ) -> RowInputs:
        return row_functions.row_inputs(meta, slots, positions, lengths, states)

    def draft_tree(self, drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
        return draft_tree.draft_tree(drafts, root_states, tables)

    def one_pass_mask(self, rows: LedRows, inputs: StepInputs, index: Tensor | None, mask: Tensor, tau: Tensor) -> None:
        one_pass.fill_mask(rows, inputs, self.coin_threshold, index, mask, tau)

    def head_pass(self, hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
        self._check_one_pass(head)
        return one_pass.head_pass(hidden, latents, head, tau, mask, lse, self.allows_dynamic_shapes)

    def _check_one_pass(self, head: Head) -> None:
        if head.project is not None or not self.supports_one_pass:
            raise ValueError(
                f"the one-pass form needs a head with a weight, and backend torch, numba or triton; "
                f'this is "{self.public_name}"{"" if head.project is None else " and a head without one"}'
            )

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
        layers = torch_step.layers_of(latents, rows)
        return torch_step.led_step(
            final_logits, layers, head, rows, inputs, known_lse, edits, self.allows_dynamic_shapes, tree
        )

    def write_tokens(
        self, meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep, draws_inactive: bool = False
    ) -> None:
        row_functions.write_tokens(meta, token_ids, inputs, step)

    def advance(
        self, meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor
    ) -> None:
        row_functions.advance(meta, tables, states, inputs, token_ids)

    def count(
        self, inputs: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters
    ) -> Tensor:
        return stats.pack_flags(inputs, step, has_failed, method, counters)

    def softmax_rows(self, logits: Tensor, rows: Tensor, skip: Tensor, tau: Tensor) -> Tensor:
        return torch.softmax(logits[rows].float().div_(tau[:, None]), -1)

    def sample_filtered(
        self, probs: Tensor, rows: Tensor, skip: Tensor, uniform: Tensor, filters: Filters
    ) -> tuple[Tensor, Support]:
        return filtered_draw.sample_filtered(probs, rows, uniform, filters)


STEPS: dict[str, Callable[..., LedStep]] = {"eager": baseline.led_step, "reference": reference.led_step}


class BaselineBackend(TorchBackend):
    """Another step over every row and layer: what benchmarks compare with, and the truth of the self test."""

    supports_one_pass = False

    def __init__(self, public_name: str, allows_dynamic_shapes: bool) -> None:
        super().__init__(allows_dynamic_shapes)
        self.public_name = public_name

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
        layers = torch_step.layers_of(latents, rows)
        return STEPS[self.public_name](final_logits, layers, head, rows, inputs, edits=edits)
