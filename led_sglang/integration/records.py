"""What a step tells about its rows, on its way from the device to the request's `meta_info`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.integration.runtime import count_failure, runtime
from led_sglang.jit import jit
from led_sglang.params import LedParams

if TYPE_CHECKING:
    from led_sglang.integration.batch import LedBatch
    from led_sglang.integration.step import StepContext

RECORD_KEY = "__led_step"  # of LogitsProcessorOutput.customized_info, scheduler only
WIRE_KEY = "__led"  # of a request's customized_info: one entry per generated token

THINKING, EXPLORED, ACTIVE, FALLBACK = 1, 2, 4, 8  # bits of an entry's flags
DETAIL_SHIFT, DETAIL_MASK = 4, 15  # then the confidence's bucket, or why the step fell back
DEPTH_SHIFT = 8  # then the depth
STEP_FAILED, NOT_FINITE = 0, 1  # why: our code raised, or the row's numbers were not finite
FALLBACK_REASONS = ("step_failed", "not_finite")
CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
NUM_TRACE_VALUES = 7
_BOUNDS = np.array(CONFIDENCE_BOUNDS)


def to_host(tensor: Tensor) -> Tensor:
    """Start copying to pinned memory; the engine waits for its own copies on the same stream before reading results."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class StepRecord:
    """One step's LED facts; `entry(row)` is read once the step's results are on the host."""

    def __init__(self, led: "LedBatch") -> None:
        self._led = led
        self._tensors: tuple[Tensor, ...] | None = None
        self._trace: tuple[Tensor, ...] | None = None
        self._flags: list[int] | None = None
        self._trace_lists: list[list[Any]] | None = None
        self._depth_entropy: Tensor | None = None
        self.has_failed = False

    @classmethod
    def of(cls, led: "LedBatch", context: "StepContext | None") -> "StepRecord":
        record = cls(led)
        if context is None:
            record.has_failed = bool(led.our_rows)
            return record
        step = context.step
        record._tensors = (to_host(context.standing.thinking), to_host(context.active))
        if step is None:
            record.has_failed = context.failed
            return record
        record._tensors += tuple(to_host(column) for column in (step.explored, step.ok, step.depth, step.confidence))
        if step.entropy is not None and step.logprob is not None:
            record._trace = tuple(
                to_host(tensor)
                for tensor in (
                    step.confidence,
                    step.entropy,
                    step.logprob,
                    step.candidate_ids,
                    step.exploit_probs,
                    step.explore_probs,
                )
            )
            record._depth_entropy = None if step.depth_entropy is None else to_host(step.depth_entropy)
        return record

    def entry(self, row: int) -> int | tuple[Any, ...] | None:
        """None: not a LED request; int: flags and depth; tuple: the same and the trace."""
        request = self._led.seats[row].request
        if request is None:
            return None
        position = self._led.position.get(row)
        if position is None:
            return 0
        if self._tensors is None:
            return FALLBACK
        if self._flags is None:
            self._flags = self._all_flags().tolist()
        flags = self._flags[position]
        if not request.params.trace:
            return flags
        return (flags, *self._trace_of(position, request.params, flags))

    def _all_flags(self) -> Any:
        """(R,) int64"""
        assert self._tensors is not None
        columns = [tensor.numpy() for tensor in self._tensors]
        flags = np.empty(len(columns[0]), np.int64)
        if len(columns) == 2:
            _pack_undecided(*columns, self.has_failed, flags)
        else:
            _pack(*columns, _BOUNDS, flags)
        return flags

    def _trace_of(self, position: int, params: LedParams, flags: int) -> tuple[Any, ...]:
        if self._trace is None or not flags & ACTIVE or flags & FALLBACK:
            return (None,) * NUM_TRACE_VALUES
        if self._trace_lists is None:
            self._trace_lists = [tensor.tolist() for tensor in self._trace]
        confidence, entropy, logprob, candidates, exploit, explore = (v[position] for v in self._trace_lists)
        k = params.top_k
        depths = None if self._depth_entropy is None else self._depth_entropy[position, : params.depth].tolist()
        return confidence, entropy, logprob, candidates[:k], exploit[:k], explore[:k], depths


@jit
def _pack_undecided(thinking: Any, active: Any, has_failed: bool, flags: Any) -> None:
    """(R,) bool each: a step that LED did not decide, or failed to."""
    for r in range(len(flags)):
        flags[r] = THINKING * thinking[r] | ACTIVE * active[r] | FALLBACK * (active[r] and has_failed)


@jit
def _pack(
    thinking: Any, active: Any, explored: Any, ok: Any, depth: Any, confidence: Any, bounds: Any, flags: Any
) -> None:
    for r in range(len(flags)):
        flags[r] = THINKING * thinking[r] | ACTIVE * active[r]
        if active[r] and not ok[r]:
            flags[r] |= FALLBACK | NOT_FINITE << DETAIL_SHIFT
        elif active[r]:
            bucket = 0
            while bucket < len(bounds) and bounds[bucket] < confidence[r]:
                bucket += 1
            flags[r] |= EXPLORED * explored[r] | bucket << DETAIL_SHIFT | depth[r] << DEPTH_SHIFT


def warm() -> None:
    """Compile them before the first request."""
    flag, number = np.ones(1, np.bool_), np.ones(1, np.int64)
    _pack_undecided(flag, flag, False, number)
    _pack(flag, flag, flag, flag, number, np.ones(1, np.float32), _BOUNDS, number)


def _guarded_entry(record: StepRecord, row: int) -> int | tuple[Any, ...] | None:
    """An entry that cannot be told becomes one of a failed step: a trace keeps one entry for each token."""
    try:
        return record.entry(row)
    except Exception:
        current = runtime()
        assert current is not None
        count_failure(current)
        return FALLBACK


def collect(original: Any, self: Any, i: int, req: Any, logits_output: Any) -> None:
    """AROUND `_maybe_collect_customized_info`: a request is given its own LED entries, never another's."""
    info = getattr(logits_output, "customized_info", None)
    if info is None or RECORD_KEY not in info:
        original(self, i, req, logits_output)
        return
    record: StepRecord = info[RECORD_KEY]
    if len(info) > 1:
        logits_output.customized_info = {key: value for key, value in info.items() if key != RECORD_KEY}
        original(self, i, req, logits_output)
        logits_output.customized_info = info
    entry = _guarded_entry(record, i)
    if entry is not None:
        if req.customized_info is None:
            req.customized_info = {}
        req.customized_info.setdefault(WIRE_KEY, []).append(entry)
