"""The backend of a CPU: compiled loops for the step and around it, since a small model's step is bound by calls."""

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops import warm_up
from led_sglang.ops.backends import numba_step
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows import numba_loops, stats, tree_loops
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.rows.draw_loops import draw_rows
from led_sglang.ops.rows.noise import uniforms
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
from led_sglang.wire import CONFIDENCE_BOUNDS

NO_LENGTHS = np.empty(0, np.int64)
NO_TABLES = NO_LENGTHS, NO_LENGTHS, 0
BOUNDS = np.array(CONFIDENCE_BOUNDS)


class NumbaBackend(TorchBackend):
    """See `led_sglang.ops.backend.Backend`. The one-pass form's own product is torch's."""

    name, public_name = "numba", "compiled"
    draws_inactive = True

    def __init__(self) -> None:
        super().__init__(allows_dynamic_shapes=True)

    def prepare(self) -> None:
        warm_up.run_without_head(self)
        row, counters = torch.zeros(1, dtype=torch.int64), Counters.zeros(2, 1, torch.device("cpu"))
        uniforms(row, row, row)
        stats.count([0], [0], 1, counters.values.numpy(), counters.method_offset)

    def row_inputs(
        self, meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor
    ) -> RowInputs:
        num_rows = meta.num_rows
        numbers, flags = np.empty((3, num_rows), np.int64), np.empty((2, num_rows), np.bool_)
        uniform = np.empty((2, num_rows))
        numba_loops.fill_row_inputs(
            slots.numpy(), positions.numpy(), NO_LENGTHS if lengths is None else lengths.numpy(), *meta.columns,
            states.numpy(), numbers, flags, uniform,
        )  # fmt: skip
        row_slots, row_states, row_positions = torch.from_numpy(numbers).unbind()
        thinking, active = torch.from_numpy(flags).unbind()
        coin_uniform, token_uniform = torch.from_numpy(uniform).unbind()
        return RowInputs(active, coin_uniform, token_uniform, row_slots, row_states, thinking, row_positions)

    def draft_tree(self, drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
        columns = drafts.token_ids, drafts.first_child, drafts.next_sibling, root_states
        parents, states = torch.empty(2, *drafts.token_ids.shape, dtype=torch.int64)
        automaton = NO_TABLES if tables is None else tables.arrays
        tree_loops.grow(*(column.numpy() for column in columns), *automaton, parents.numpy(), states.numpy())
        return DraftTree(drafts, parents, states)

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
        return numba_step.led_step(final_logits, latents, head, rows, inputs, known_lse, edits, draws_inactive, tree)

    def write_tokens(
        self, meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep, draws_inactive: bool = False
    ) -> None:
        columns = inputs.active.numpy(), step.ok.numpy(), step.token_ids.numpy()
        numba_loops.write_tokens(token_ids.numpy(), meta.batch_rows, *columns, draws_inactive)

    def advance(
        self, meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor
    ) -> None:
        columns = inputs.slots.numpy(), inputs.states.numpy(), token_ids.numpy()
        numba_loops.move_states(states.numpy(), *columns, meta.batch_rows, *tables.arrays)

    def count(
        self, inputs: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters
    ) -> Tensor:
        flags, counts = np.empty(len(method), np.int64), counters.values.numpy()
        ours = inputs.thinking.numpy(), inputs.active.numpy()
        if step is None:
            args = *ours, method.numpy(), counts, counters.method_offset, has_failed, flags
            numba_loops.pack_undecided(*args)
        else:
            columns = step.explored.numpy(), step.ok.numpy(), step.depth.numpy(), step.confidence.numpy()
            rest = method.numpy(), counts, counters.method_offset, BOUNDS, flags
            numba_loops.pack_flags(*ours, *columns, *rest)
        return torch.from_numpy(flags)

    def sample_filtered(
        self, probs: Tensor, rows: Tensor, skip: Tensor, uniform: Tensor, filters: Filters
    ) -> tuple[Tensor, Support]:
        tokens, num_ties = torch.empty(2, len(rows), dtype=torch.int64)
        floor = torch.empty(len(rows), dtype=torch.int32)
        columns = filters.top_k.long(), filters.top_p.float(), filters.min_p.float(), tokens, floor, num_ties
        draw_rows(probs.float().numpy(), *(column.numpy() for column in (rows, skip, uniform.double(), *columns)))
        return tokens, Support(floor, num_ties)
