"""What rows are before a token and after it in torch, for every device: thinking phase, noise, tokens.

`led_sglang.ops.backend.Backend` says what each function does. Shape letters: `B` rows of the batch, `R` of them ours.
"""

import torch
from torch import Tensor

from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.noise import uniforms
from led_sglang.ops.types import LedStep, RowInputs, RowMeta, StepInputs


def row_inputs(meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor) -> RowInputs:
    row_slots = meta.pick(slots)
    row_states = states[row_slots]
    if lengths is not None:
        row_states = torch.where(meta.pick(lengths) == meta.start_length, meta.start_state, row_states)
    thinking = ThinkingTables.thinking(row_states)
    active = thinking | meta.phase_all if meta.any_phase_all else thinking
    if meta.is_led is not None:
        active = active & meta.is_led
    row_positions = meta.pick(positions).long()
    coin_uniform, token_uniform = uniforms(meta.seed, meta.sample, row_positions)
    return RowInputs(active, coin_uniform, token_uniform, row_slots, row_states, thinking, row_positions)


def write_tokens(meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep) -> None:
    engine_ids = meta.pick(token_ids)
    kept = torch.where(inputs.active & step.ok, step.token_ids.to(engine_ids.dtype), engine_ids)
    if meta.index is None:
        token_ids[: meta.num_rows] = kept
    else:
        token_ids[meta.index] = kept


def advance(meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor) -> None:
    states[inputs.slots] = tables.advance(inputs.states, meta.pick(token_ids).long())
