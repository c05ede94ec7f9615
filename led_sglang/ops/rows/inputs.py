"""Where the rows stand before a token and where they go after it: thinking phase, noise, tokens.

In torch for every device; on a CPU `row_loops` does each in one call. Shape letters: `B` rows of the batch, `R` of them
ours.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops import arrays
from led_sglang.ops.rows import numba_loops
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.noise import uniforms
from led_sglang.ops.types import LedStep, Noise

NO_LENGTHS = np.empty(0, np.int64)


@dataclass(frozen=True)
class RowMeta:
    """Our rows of a batch and what does not change from token to token; on the step's device."""

    index: Tensor | None  # (R,) int64 rows of the batch; None = all of them in order
    seed: Tensor  # (R,) int64
    sample: Tensor  # (R,) int64
    start_state: Tensor  # (R,) int64: of the thinking automaton after the request's whole ids
    start_length: Tensor  # (R,) int64: number of those ids
    phase_all: Tensor  # (R,) bool
    is_led: Tensor | None  # (R,) bool; None = all of them
    any_phase_all: bool

    def pick(self, batch_tensor: Tensor) -> Tensor:
        """(B or more, ...) -> (R, ...): a graph's batch is padded."""
        return batch_tensor[: self.num_rows] if self.index is None else batch_tensor.index_select(0, self.index)

    @property
    def num_rows(self) -> int:
        return len(self.seed)

    @property
    def in_batch(self) -> Tensor:
        """`index`, whatever it is: (R,) int64."""
        return torch.arange(self.num_rows, device=self.seed.device) if self.index is None else self.index

    @cached_property
    def batch_rows(self) -> Any:
        """`index` for numpy: (R,) int64. CPU only."""
        return np.arange(self.num_rows) if self.index is None else self.index.numpy()

    @cached_property
    def columns(self) -> Any:
        """For `row_loops.stand`. CPU only."""
        is_led = np.ones(self.num_rows, np.bool_) if self.is_led is None else self.is_led.numpy()
        named = self.phase_all, self.start_state, self.start_length, self.seed, self.sample
        return self.batch_rows, is_led, *(column.numpy() for column in named)


@dataclass(frozen=True)
class RowInputs(Noise):
    """Of our rows, before the token is known: where they stand, beside the step's noise."""

    slots: Tensor  # (R,) int64
    states: Tensor  # (R,) int64 of the thinking automaton
    thinking: Tensor  # (R,) bool
    active: Tensor  # (R,) bool: LED decodes them, inside its phase
    positions: Tensor  # (R,) int64


def make_row_inputs(
    meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor, backend: str
) -> RowInputs:
    """Request slots and positions of the batch, (B,) int64; lengths, (B,), of an extend step, None of a decode step.

    Padding behind them is allowed. states: thinking states by slot; a row whose length is its `start_length` starts
    from its `start_state`. Backend "triton": one kernel where the host cannot look.
    """
    if arrays.allows_dynamic_shapes(slots.device):
        return _numba_row_inputs(meta, slots, positions, lengths, states)
    if backend == "triton":
        from led_sglang.ops.kernels import row_inputs

        return row_inputs.make_row_inputs(meta, slots, positions, lengths, states)
    row_slots = meta.pick(slots)
    row_states = states[row_slots]
    if lengths is not None:
        row_states = torch.where(meta.pick(lengths) == meta.start_length, meta.start_state, row_states)
    thinking = ThinkingTables.thinking(row_states)
    active = thinking | meta.phase_all if meta.any_phase_all else thinking
    if meta.is_led is not None:
        active = active & meta.is_led
    row_positions = meta.pick(positions).long()
    coin_uniform, token = uniforms(meta.seed, meta.sample, row_positions)
    return RowInputs(coin_uniform, token, row_slots, row_states, thinking, active, row_positions)


def _numba_row_inputs(
    meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor
) -> RowInputs:
    num_rows = meta.num_rows
    numbers, flags = np.empty((3, num_rows), np.int64), np.empty((2, num_rows), np.bool_)
    row_slots, row_states, row_positions = numbers
    thinking, active = flags
    noise = np.empty((2, num_rows))
    numba_loops.fill_row_inputs(
        slots.numpy(), positions.numpy(), NO_LENGTHS if lengths is None else lengths.numpy(), *meta.columns,
        states.numpy(), row_slots, row_states, thinking, active, row_positions, noise,
    )  # fmt: skip
    return RowInputs.of_arrays(
        {
            "coin_uniform": noise[0],
            "token_uniform": noise[1],
            "slots": row_slots,
            "states": row_states,
            "thinking": thinking,
            "active": active,
            "positions": row_positions,
        }
    )


def write_tokens(
    meta: RowMeta, token_ids: Tensor, now: RowInputs, step: LedStep, backend: str, draws_inactive: bool = False
) -> None:
    """Our rows' entries of token_ids, (B,), become the step's where LED decodes them and they are `ok`; in place.

    draws_inactive: also of rows that are not active; where the host may look.
    """
    if arrays.allows_dynamic_shapes(token_ids.device):
        columns = *now.arrays("active"), *step.arrays("ok", "token_ids")
        numba_loops.write_tokens(token_ids.numpy(), meta.batch_rows, *columns, draws_inactive)
        return
    if backend == "triton":
        from led_sglang.ops.kernels import row_inputs

        row_inputs.write_tokens(meta, token_ids, now, step)
        return
    engine_ids = meta.pick(token_ids)
    kept = torch.where(now.active & step.ok, step.token_ids.to(engine_ids.dtype), engine_ids)
    if meta.index is None:
        token_ids.copy_(kept)
    else:
        token_ids[meta.index] = kept


def move_states(
    meta: RowMeta, tables: ThinkingTables, states: Tensor, before: RowInputs, token_ids: Tensor, backend: str
) -> None:
    """Thinking states by slot, in place: our rows' become those that follow `before` by token_ids, (B,)."""
    if arrays.allows_dynamic_shapes(states.device):
        own = before.arrays("slots", "states")
        numba_loops.move_states(states.numpy(), *own, token_ids.numpy(), meta.batch_rows, *tables.arrays)
    elif backend == "triton":
        from led_sglang.ops.kernels import row_inputs

        row_inputs.move_states(meta, tables, states, before, token_ids)
    else:
        states[before.slots] = tables.advance(before.states, meta.pick(token_ids).long())
