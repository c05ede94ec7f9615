"""`ops.rows.inputs` and `.stats` in one kernel before a token and three after: torch launches seventy for the same.

No GPU has timed these kernels; they save launches, and nothing depends on them but `backends.triton`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang import wire
from led_sglang.ops import constants
from led_sglang.ops.kernels.common import aligned, row_idx_of
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.types import Counters, LedStep, RowInputs, RowMeta, StepInputs

BLOCK = 64
# As the kernels may read globals.
SALT, STEP = tl.constexpr(constants.SALT), tl.constexpr(constants.STEP)
FIRST_FACTOR, SECOND_FACTOR = tl.constexpr(constants.FIRST_FACTOR), tl.constexpr(constants.SECOND_FACTOR)
SEED_FACTOR, COUNTER_FACTOR = tl.constexpr(constants.SEED_FACTOR), tl.constexpr(constants.COUNTER_FACTOR)
SAMPLE_SHIFT = tl.constexpr(constants.SAMPLE_SHIFT)
THINKING, EXPLORED = tl.constexpr(wire.THINKING), tl.constexpr(wire.EXPLORED)
ACTIVE, FALLBACK = tl.constexpr(wire.ACTIVE), tl.constexpr(wire.FALLBACK)
DETAIL_SHIFT, DEPTH_SHIFT = tl.constexpr(wire.DETAIL_SHIFT), tl.constexpr(wire.DEPTH_SHIFT)
NOT_COUNTED = tl.constexpr(constants.NOT_COUNTED)
NOT_FINITE, LED_OFFSET = tl.constexpr(wire.NOT_FINITE), tl.constexpr(wire.LED_OFFSET)
THINKING_OFFSET, REASON_OFFSET = tl.constexpr(wire.THINKING_OFFSET), tl.constexpr(wire.REASON_OFFSET)
CONFIDENCE_OFFSET, DEPTH_OFFSET = tl.constexpr(wire.CONFIDENCE_OFFSET), tl.constexpr(wire.DEPTH_OFFSET)


@triton.jit
def mix(state):  # type: ignore[no-untyped-def]
    """`led_sglang.ops.rows.noise.mix`."""
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * FIRST_FACTOR
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * SECOND_FACTOR
    return state ^ ((state >> 31) & ((1 << 33) - 1))


@triton.jit
def uniform(keyed):  # type: ignore[no-untyped-def]
    return ((mix(keyed) >> 11) & ((1 << 53) - 1)).to(tl.float64) * 2.0**-53


@triton.jit(do_not_specialize=["num_rows", "has_index", "has_lengths", "has_is_led"])  # type: ignore[untyped-decorator]
def row_inputs_kernel(  # type: ignore[no-untyped-def]
    slots,  # (B,) int64, like the next two
    positions,
    lengths,  # where has_lengths
    states,  # by slot, int64
    index,  # (R,) int64, where has_index
    seed,  # (R,) int64, like the next three
    sample,
    start_state,
    start_length,
    phase_all,  # (R,) bool
    is_led,  # (R,) bool, where has_is_led
    row_slots,  # (R,) int64, written, like the next two
    row_states,
    row_positions,
    thinking,  # (R,) bool, written
    active,  # (R,) bool, written
    coin_uniform,  # (R,) float64, written
    token_uniform,  # (R,) float64, written
    num_rows,
    has_index,
    has_lengths,
    has_is_led,
    BLOCK: tl.constexpr,
):
    """Slot, state, phase, position and both uniforms of each row; see `Backend.row_inputs`. A program: BLOCK rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    row_idx = row_idx_of(index, rows, is_row, has_index)
    slot = tl.load(slots + row_idx, mask=is_row, other=0)
    position = tl.load(positions + row_idx, mask=is_row, other=0)
    state = tl.load(states + slot, mask=is_row, other=0)
    is_extended = is_row & (has_lengths != 0)
    length = tl.load(lengths + row_idx, mask=is_extended, other=0)
    is_start = is_extended & (length == tl.load(start_length + rows, mask=is_row, other=0))
    state = tl.where(is_start, tl.load(start_state + rows, mask=is_row, other=0), state)
    thinks = (state & 1) == 1
    acts = thinks | (tl.load(phase_all + rows, mask=is_row, other=0) != 0)
    acts = acts & ((has_is_led == 0) | (tl.load(is_led + rows, mask=is_row, other=0) != 0))
    counter = (tl.load(sample + rows, mask=is_row, other=0) << SAMPLE_SHIFT) + position
    keyed = mix(tl.load(seed + rows, mask=is_row, other=0) * SEED_FACTOR + counter * COUNTER_FACTOR + SALT)
    tl.store(row_slots + rows, slot, mask=is_row)
    tl.store(row_states + rows, state, mask=is_row)
    tl.store(row_positions + rows, position, mask=is_row)
    tl.store(thinking + rows, thinks.to(tl.uint8), mask=is_row)
    tl.store(active + rows, acts.to(tl.uint8), mask=is_row)
    tl.store(coin_uniform + rows, uniform(keyed + STEP), mask=is_row)
    tl.store(token_uniform + rows, uniform(keyed + STEP + STEP), mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "has_index"])  # type: ignore[untyped-decorator]
def write_kernel(  # type: ignore[no-untyped-def]
    token_ids,  # (B,) integers, written
    index,  # (R,) int64, where has_index
    active,  # (R,) bool
    ok,  # (R,) bool
    chosen,  # (R,) int64
    num_rows,
    has_index,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    row_idx = row_idx_of(index, rows, is_row, has_index)
    is_taken = (tl.load(active + rows, mask=is_row, other=0) != 0) & (tl.load(ok + rows, mask=is_row, other=0) != 0)
    value = tl.load(chosen + rows, mask=is_row, other=0).to(token_ids.dtype.element_ty)
    tl.store(token_ids + row_idx, value, mask=is_row & is_taken)


@triton.jit(do_not_specialize=["num_rows", "num_vocab", "num_symbols", "has_index"])  # type: ignore[untyped-decorator]
def advance_kernel(  # type: ignore[no-untyped-def]
    states,  # by slot, int64, written
    slots,  # (R,) int64
    before,  # (R,) int64
    token_ids,  # (B,) integers
    index,  # (R,) int64, where has_index
    symbol_of,  # (num_vocab,) int64
    next_state,  # int64
    num_rows,
    num_vocab,
    num_symbols,
    has_index,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    tokens = tl.load(token_ids + row_idx_of(index, rows, is_row, has_index), mask=is_row, other=0).to(tl.int64)
    is_known = is_row & (tokens >= 0) & (tokens < num_vocab)  # any other is an ordinary token
    symbols = tl.load(symbol_of + tokens, mask=is_known, other=0)
    transitions = tl.load(before + rows, mask=is_row, other=0) * num_symbols + symbols
    after = tl.load(next_state + transitions, mask=is_row, other=0)
    tl.store(states + tl.load(slots + rows, mask=is_row, other=0), after, mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "method_offset"])  # type: ignore[untyped-decorator]
def pack_flags_kernel(  # type: ignore[no-untyped-def]
    thinking,  # (R,) bool, like the next three
    active,
    explored,
    ok,
    depth,  # (R,) int64
    confidence,  # (R,) float32
    method,  # (R,) int64
    bounds,  # (NUM_BOUNDS,) float64
    counters,  # int64
    flags,  # (R,) int64, written
    num_rows,
    method_offset,
    NUM_BOUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Flags of each row, and each counter raised by its rows; see `Backend.count`. A program: BLOCK rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    thinks = tl.load(thinking + rows, mask=is_row, other=0) != 0
    is_active = tl.load(active + rows, mask=is_row, other=0) != 0
    is_fine = is_active & (tl.load(ok + rows, mask=is_row, other=0) != 0)
    is_broken = is_active & (is_fine == 0)
    explores = is_fine & (tl.load(explored + rows, mask=is_row, other=0) != 0)
    sure = tl.load(confidence + rows, mask=is_row, other=0).to(tl.float64)
    bucket = tl.zeros((BLOCK,), tl.int64)
    for i in range(NUM_BOUNDS):
        bucket += (tl.load(bounds + i) < sure).to(tl.int64)
    deep = tl.where(is_fine, tl.load(depth + rows, mask=is_row, other=0), 0)
    packed = thinks.to(tl.int64) * THINKING + is_active.to(tl.int64) * ACTIVE + explores.to(tl.int64) * EXPLORED
    packed += tl.where(is_fine, (bucket << DETAIL_SHIFT) + (deep << DEPTH_SHIFT), 0)
    packed += is_broken.to(tl.int64) * (FALLBACK + (NOT_FINITE << DETAIL_SHIFT))
    tl.store(flags + rows, packed, mask=is_row)

    one = tl.full((BLOCK,), 1, tl.int64)
    nowhere = tl.zeros((BLOCK,), tl.int64)
    kind = tl.load(method + rows, mask=is_row, other=0)
    is_row = is_row & (kind != NOT_COUNTED)
    thinks, is_active, is_broken = thinks & is_row, is_active & is_row, is_broken & is_row
    is_fine, explores = is_fine & is_row, explores & is_row
    # Relaxed: otherwise each addition would wait until the one before has reached memory.
    tl.atomic_add(counters + nowhere + LED_OFFSET, one, mask=is_active, sem="relaxed")
    tl.atomic_add(counters + nowhere + THINKING_OFFSET, one, mask=thinks, sem="relaxed")
    tl.atomic_add(counters + nowhere + (REASON_OFFSET + NOT_FINITE), one, mask=is_broken, sem="relaxed")
    tl.atomic_add(counters + CONFIDENCE_OFFSET + bucket, one, mask=is_fine, sem="relaxed")
    tl.atomic_add(counters + DEPTH_OFFSET + deep, one, mask=explores, sem="relaxed")
    tl.atomic_add(counters + method_offset + kind, one, mask=is_row, sem="relaxed")


def _grid(num_rows: int) -> tuple[int]:
    return (triton.cdiv(num_rows, BLOCK),)


def _optional(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A kernel's flag says whether it reads the tensor; some pointer of its type it must have."""
    return other if tensor is None else tensor


def row_inputs(meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor) -> RowInputs:
    """See `led_sglang.ops.backend.Backend.row_inputs`."""
    num_rows, device = meta.num_rows, slots.device
    row_slots, row_states, row_positions = aligned(3, num_rows, torch.int64, device)
    thinking, active = aligned(2, num_rows, torch.uint8, device)
    coin_uniform, token_uniform = aligned(2, num_rows, torch.float64, device)
    flags = int(meta.index is not None), int(lengths is not None), int(meta.is_led is not None)
    slots, positions = slots.long(), positions.long()  # the engine's are, and one variant is enough
    if num_rows:
        row_inputs_kernel[_grid(num_rows)](
            slots,
            positions,
            slots if lengths is None else lengths.long(),
            states,
            _optional(meta.index, meta.seed),
            meta.seed,
            meta.sample,
            meta.start_state,
            meta.start_length,
            meta.phase_all,
            _optional(meta.is_led, meta.phase_all),
            row_slots,
            row_states,
            row_positions,
            thinking,
            active,
            coin_uniform,
            token_uniform,
            num_rows,
            *flags,
            BLOCK=BLOCK,
        )
    thinks, acts = thinking.view(torch.bool), active.view(torch.bool)
    return RowInputs(acts, coin_uniform, token_uniform, row_slots, row_states, thinks, row_positions)


def write_tokens(meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep) -> None:
    """See `led_sglang.ops.backend.Backend.write_tokens`."""
    if meta.num_rows:
        index = _optional(meta.index, step.token_ids)
        write_kernel[_grid(meta.num_rows)](
            token_ids, index, inputs.active, step.ok, step.token_ids, meta.num_rows, int(meta.index is not None),
            BLOCK=BLOCK,
        )  # fmt: skip


def advance(meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor) -> None:
    """See `led_sglang.ops.backend.Backend.advance`."""
    if meta.num_rows:
        advance_kernel[_grid(meta.num_rows)](
            states, inputs.slots, inputs.states, token_ids, _optional(meta.index, inputs.slots), tables.symbol_of,
            tables.next_state, meta.num_rows, len(tables.symbol_of), tables.num_symbols,
            int(meta.index is not None), BLOCK=BLOCK,
        )  # fmt: skip


def pack_flags(inputs: RowInputs, step: LedStep, method: Tensor, counters: Counters) -> Tensor:
    """Of a step that LED decided; see `led_sglang.ops.backend.Backend.count`."""
    num_rows = len(method)
    flags = torch.empty_like(method)
    limits = counters.bounds
    if num_rows:
        columns = inputs.thinking, inputs.active, step.explored, step.ok, step.depth, step.confidence, method
        pack_flags_kernel[_grid(num_rows)](
            *columns, limits, counters.values, flags, num_rows, counters.method_offset,
            NUM_BOUNDS=len(limits), BLOCK=BLOCK,
        )  # fmt: skip
    return flags
