"""What the CPU does for each row before and after a token, compiled: one call where torch needs ten."""

from typing import Any

import numpy as np

from led_sglang.jit import jit
from led_sglang.ops.constants import (
    COUNTER_FACTOR,
    FIRST_FACTOR,
    NOT_COUNTED,
    SALT,
    SAMPLE_SHIFT,
    SECOND_FACTOR,
    SEED_FACTOR,
    STEP,
)
from led_sglang.wire import (
    ACTIVE,
    CONFIDENCE_OFFSET,
    DEPTH_OFFSET,
    DEPTH_SHIFT,
    DETAIL_MASK,
    DETAIL_SHIFT,
    EXPLORED,
    FALLBACK,
    LED_OFFSET,
    NOT_FINITE,
    REASON_OFFSET,
    STEP_FAILED,
    THINKING,
    THINKING_OFFSET,
)

_SALT, _STEP, _SEED_FACTOR, _COUNTER_FACTOR, _FIRST_FACTOR, _SECOND_FACTOR = (
    np.uint64(word % 2**64) for word in (SALT, STEP, SEED_FACTOR, COUNTER_FACTOR, FIRST_FACTOR, SECOND_FACTOR)
)


@jit
def _mix(state: Any) -> Any:
    state = (state ^ (state >> np.uint64(30))) * _FIRST_FACTOR
    state = (state ^ (state >> np.uint64(27))) * _SECOND_FACTOR
    return state ^ (state >> np.uint64(31))


@jit
def fill_uniforms(seed: Any, sample: Any, position: Any, uniform: Any) -> None:
    """(R,) int64 each; (num_streams, R) float64, written."""
    num_streams, num_rows = uniform.shape
    for r in range(num_rows):
        counter = (np.uint64(sample[r]) << np.uint64(SAMPLE_SHIFT)) + np.uint64(position[r])
        keyed = _mix(np.uint64(seed[r]) * _SEED_FACTOR + counter * _COUNTER_FACTOR + _SALT)
        for stream in range(num_streams):
            keyed += _STEP
            uniform[stream, r] = (_mix(keyed) >> np.uint64(11)) * 2.0**-53


@jit
def fill_row_inputs(
    slots: Any, positions: Any, lengths: Any, index: Any, is_led: Any, phase_all: Any, start_state: Any,
    start_length: Any, seed: Any, sample: Any, states: Any, numbers: Any, flags: Any, uniform: Any,
) -> None:  # fmt: skip
    """slots, positions and, of an extend step, lengths: (B,); those of RowMeta: (R,).

    Written: numbers (3, R), slots, states and positions; flags (2, R), thinking and active; uniform (2, R).
    """
    row_slots, row_states, row_positions = numbers
    thinking, active = flags
    for r in range(len(index)):
        row = index[r]
        slot = slots[row]
        state = states[slot]
        if len(lengths) and lengths[row] == start_length[r]:
            state = start_state[r]
        row_slots[r], row_states[r], row_positions[r] = slot, state, positions[row]
        thinking[r] = (state & 1) == 1
        active[r] = is_led[r] and (thinking[r] or phase_all[r])
    fill_uniforms(seed, sample, row_positions, uniform)


@jit
def write_tokens(token_ids: Any, index: Any, active: Any, is_fine: Any, chosen: Any, draws_inactive: bool) -> None:
    """token_ids (B,) of the rows of `index` become `chosen`, (R,), where both flags hold, or `is_fine` alone."""
    for r in range(len(index)):
        if (active[r] or draws_inactive) and is_fine[r]:
            token_ids[index[r]] = chosen[r]


@jit
def move_states(
    states: Any, slots: Any, before: Any, token_ids: Any, index: Any, symbol_of: Any, next_state: Any, num_symbols: int
) -> None:
    """The automaton of `led_sglang.ops.rows.automaton`, one token (of the batch's) further in every slot.

    Nothing here checks bounds: an id outside the vocabulary is an ordinary token, not a read of somebody's memory.
    """
    for r in range(len(index)):
        token = token_ids[index[r]]
        symbol = symbol_of[token] if 0 <= token < len(symbol_of) else 0
        states[slots[r]] = next_state[before[r] * num_symbols + symbol]


@jit
def count(flags: Any, method: Any, weight: int, counters: Any, method_offset: int) -> None:
    """Rows, (R,) int64, are added `weight` times to the counters of their kinds."""
    for r in range(len(flags)):
        if method[r] == NOT_COUNTED:
            continue
        row = flags[r]
        detail = row >> DETAIL_SHIFT & DETAIL_MASK
        counters[method_offset + method[r]] += weight
        if row & THINKING:
            counters[THINKING_OFFSET] += weight
        if row & ACTIVE:
            counters[LED_OFFSET] += weight
        if row & FALLBACK:
            counters[REASON_OFFSET + detail] += weight
        elif row & ACTIVE:
            counters[CONFIDENCE_OFFSET + detail] += weight
        if row & EXPLORED:
            counters[DEPTH_OFFSET + (row >> DEPTH_SHIFT)] += weight


@jit
def pack_undecided(
    thinking: Any, active: Any, method: Any, counters: Any, method_offset: int, has_failed: bool, flags: Any
) -> None:
    """(R,) bool, bool, int64: the flags, written and counted, of a step that LED did not decide, or failed to."""
    for r in range(len(flags)):
        flags[r] = THINKING * thinking[r] | ACTIVE * active[r]
        if active[r] and has_failed:
            flags[r] |= FALLBACK | STEP_FAILED << DETAIL_SHIFT
    count(flags, method, 1, counters, method_offset)


@jit
def pack_flags(
    thinking: Any, active: Any, explored: Any, ok: Any, depth: Any, confidence: Any, method: Any, counters: Any,
    method_offset: int, bounds: Any, flags: Any,
) -> None:  # fmt: skip
    """(R,) each: the flags, written and counted, of a step that LED decided."""
    for r in range(len(flags)):
        flags[r] = THINKING * thinking[r] | ACTIVE * active[r]
        if active[r] and not ok[r]:
            flags[r] |= FALLBACK | NOT_FINITE << DETAIL_SHIFT
        elif active[r]:
            bucket = 0
            while bucket < len(bounds) and bounds[bucket] < confidence[r]:
                bucket += 1
            flags[r] |= EXPLORED * explored[r] | bucket << DETAIL_SHIFT | depth[r] << DEPTH_SHIFT
    count(flags, method, 1, counters, method_offset)
