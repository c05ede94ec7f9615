"""What a step's rows were, one integer each, and how many of each kind there have been: counted on the step's device.

Shape letter: `R` rows of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops.constants import NOT_COUNTED
from led_sglang.ops.rows import numba_loops
from led_sglang.ops.types import Counters, LedStep, RowInputs
from led_sglang.wire import (
    ACTIVE,
    CONFIDENCE_BOUNDS,
    CONFIDENCE_OFFSET,
    DEPTH_OFFSET,
    DEPTH_SHIFT,
    DETAIL_MASK,
    DETAIL_SHIFT,
    EXPLORED,
    FALLBACK,
    FALLBACK_REASONS,
    LED_OFFSET,
    NOT_FINITE,
    REASON_OFFSET,
    STEP_FAILED,
    THINKING,
    THINKING_OFFSET,
)


def pack_flags(inputs: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters) -> Tensor:
    """In torch; see `led_sglang.ops.backend.Backend.count`."""
    flags = _flags(inputs, step, has_failed, counters)
    _add(flags, method, counters)
    return flags


def _flags(inputs: RowInputs, step: LedStep | None, has_failed: bool, counters: Counters) -> Tensor:
    flags = inputs.thinking * THINKING + inputs.active * ACTIVE
    if step is None:
        return flags + inputs.active * ((FALLBACK | STEP_FAILED << DETAIL_SHIFT) * has_failed)
    bucket = (step.confidence.double()[:, None] > counters.bounds).sum(1)
    fine = step.explored * EXPLORED + (bucket << DETAIL_SHIFT) + (step.depth << DEPTH_SHIFT)
    return flags + torch.where(step.ok, fine, FALLBACK | NOT_FINITE << DETAIL_SHIFT) * inputs.active


def _add(flags: Tensor, method: Tensor, counters: Counters) -> None:
    """The torch form of `numba_loops.count`."""
    detail, is_active = flags >> DETAIL_SHIFT & DETAIL_MASK, flags & ACTIVE != 0
    has_fallen = flags & FALLBACK != 0
    offsets = [
        torch.full_like(flags, LED_OFFSET),
        torch.full_like(flags, THINKING_OFFSET),
        detail + torch.where(has_fallen, REASON_OFFSET, CONFIDENCE_OFFSET),
        (flags >> DEPTH_SHIFT) + DEPTH_OFFSET,
        method.clamp_min(0) + counters.method_offset,
    ]
    is_one = [is_active, flags & THINKING != 0, has_fallen | is_active, flags & EXPLORED != 0, flags >= 0]
    weights = torch.stack(is_one) & (method != NOT_COUNTED)
    counters.values.index_add_(0, torch.cat(offsets), weights.flatten().long())


def count(flags: Sequence[int], method: Sequence[int], weight: int, counts: Any, method_offset: int) -> None:
    """Add rows, (R,) each, `weight` times to counts, int64 like a Counters' values but numpy's; in place."""
    numba_loops.count(np.array(flags, np.int64), np.array(method, np.int64), weight, counts, method_offset)


def to_dict(counts: Any, method_offset: int, methods: Sequence[str]) -> dict[str, Any]:
    """Names and numbers of counts that are numpy's, in the order of a Counters' values."""
    values = [int(value) for value in counts]
    depths = {str(depth): values[DEPTH_OFFSET + depth] for depth in range(1, method_offset - DEPTH_OFFSET)}
    buckets = (*map(str, CONFIDENCE_BOUNDS), "+Inf")
    reasons = dict(zip(FALLBACK_REASONS, values[REASON_OFFSET:CONFIDENCE_OFFSET], strict=True))
    return {
        "led_tokens": values[LED_OFFSET],
        "thinking_tokens": values[THINKING_OFFSET],
        "explored_tokens": sum(depths.values()),
        "fallbacks": sum(reasons.values()),
        "fallback_reasons": reasons,
        "depth_histogram": depths,
        "confidence_histogram": dict(zip(buckets, values[CONFIDENCE_OFFSET:DEPTH_OFFSET], strict=True)),
        "tokens": dict(zip(methods, values[method_offset:], strict=True)),
    }
