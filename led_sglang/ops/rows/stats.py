"""What a step's rows were, one integer each, and how many of each kind there have been: counted on the step's device.

Shape letter: `R` rows of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops import arrays as host
from led_sglang.ops.rows import numba_loops
from led_sglang.ops.rows.inputs import RowInputs
from led_sglang.ops.types import LedStep
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

_BOUNDS = np.array(CONFIDENCE_BOUNDS)


@dataclass(frozen=True)
class Counters:
    """Counts of rows by kind on one device."""

    values: Tensor  # (DEPTH_OFFSET + max_depth + 1 + methods,) int64
    method_offset: int  # of the first decoding method

    @classmethod
    def zeros(cls, max_depth: int, num_methods: int, device: torch.device) -> "Counters":
        offset = DEPTH_OFFSET + max_depth + 1
        return cls(torch.zeros(offset + num_methods, dtype=torch.int64, device=device), offset)


@cache
def bounds(device: torch.device) -> Tensor:
    """CONFIDENCE_BOUNDS on a device, float64."""
    return torch.tensor(CONFIDENCE_BOUNDS, dtype=torch.float64, device=device)


def pack_flags(
    now: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters, backend: str
) -> Tensor:
    """Flags of our rows, (R,) int64, counted in place; method: (R,) int64. No host sync, one kernel under "triton".

    step: None where LED decided no row, since none was in its phase or, `has_failed`, our code raised.
    """
    if host.allows_dynamic_shapes(method.device):
        reported = np.empty(len(method), np.int64)
        columns = () if step is None else step.arrays("explored", "ok", "depth", "confidence")
        arrays = (*now.arrays("thinking", "active"), *columns, method.numpy(), counters.values.numpy())
        if step is None:
            numba_loops.pack_undecided(*arrays, counters.method_offset, has_failed, reported)
        else:
            numba_loops.pack_flags(*arrays, counters.method_offset, _BOUNDS, reported)
        return torch.from_numpy(reported)
    if backend == "triton" and step is not None:
        from led_sglang.ops.kernels.row_stats import pack_flags as pack_flags_kernel_call

        return pack_flags_kernel_call(now, step, method, counters)
    flags = _flags(now, step, has_failed)
    _add(flags, method, counters)
    return flags


def _flags(now: RowInputs, step: LedStep | None, has_failed: bool) -> Tensor:
    flags = now.thinking * THINKING + now.active * ACTIVE
    if step is None:
        return flags + now.active * ((FALLBACK | STEP_FAILED << DETAIL_SHIFT) * has_failed)
    bucket = (step.confidence.double()[:, None] > bounds(flags.device)).sum(1)
    fine = step.explored * EXPLORED + (bucket << DETAIL_SHIFT) + (step.depth << DEPTH_SHIFT)
    return flags + torch.where(step.ok, fine, FALLBACK | NOT_FINITE << DETAIL_SHIFT) * now.active


def _add(flags: Tensor, method: Tensor, counters: Counters) -> None:
    """The torch form of `row_loops.count`."""
    detail, is_active = flags >> DETAIL_SHIFT & DETAIL_MASK, flags & ACTIVE != 0
    has_fallen = flags & FALLBACK != 0
    row_idx = [
        torch.full_like(flags, LED_OFFSET),
        torch.full_like(flags, THINKING_OFFSET),
        detail + torch.where(has_fallen, REASON_OFFSET, CONFIDENCE_OFFSET),
        (flags >> DEPTH_SHIFT) + DEPTH_OFFSET,
        method + counters.method_offset,
    ]
    is_one = [is_active, flags & THINKING != 0, has_fallen | is_active, flags & EXPLORED != 0, flags >= 0]
    counters.values.index_add_(0, torch.cat(row_idx), torch.cat(is_one).long())


def count(flags: Sequence[int], method: Sequence[int], weight: int, counts: Any, method_offset: int) -> None:
    """Add rows, (R,) each, `weight` times to counts, int64 like a Counters' values but numpy's; in place."""
    numba_loops.count(np.array(flags, np.int64), np.array(method, np.int64), weight, counts, method_offset)


def to_dict(counts: Any, method_offset: int, methods: Sequence[str]) -> dict[str, Any]:
    """What numpy counts, like a Counters' values, say: names and numbers."""
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
