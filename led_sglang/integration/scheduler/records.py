"""What a step tells about its rows, on its way from the device to the request's `meta_info`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.config.fields import METHODS, LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.scheduler.counters import Counts
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.wire import ACTIVE, FALLBACK, RECORD_KEY, RESOLVED_KEY, VALUE_COLUMNS, WIRE_KEY

if TYPE_CHECKING:
    from led_sglang.integration.scheduler.batch import LedBatch
    from led_sglang.integration.scheduler.step import StepContext


def to_host(tensor: Tensor) -> Tensor:
    """Start copying to pinned memory; the engine waits for its own copies on the same stream before reading results."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class StepRecord:
    """One step's LED facts; `entry(row)` is read once the step's results are on the host."""

    def __init__(self, led: "LedBatch", counts: Counts, flags: Tensor | None = None) -> None:
        """flags: (R,) int64, already counted; None: no more is known of the step than its rows."""
        self._led = led
        self._counts = counts
        self._flags = flags
        self._flag_list: list[int] | None = None
        self._trace: tuple[Tensor, ...] | None = None
        self._trace_lists: list[list[Any]] | None = None
        self._depth_entropy: Tensor | None = None
        self._is_reported = bytearray(len(led.our_rows))
        if flags is None:
            counts.correct(*self.unreported(), 1)
        if led.our_rows:
            counts.pending.add(self)

    @classmethod
    def of(cls, led: "LedBatch", context: "StepContext | None", current: Runtime) -> "StepRecord":
        counts = current.counts
        if context is None:
            return cls(led, counts)
        step, method = context.step, context.rows.method
        flags = current.backend.count(context.inputs, step, context.failed, method, counts.on_device)
        record = cls(led, counts, to_host(flags))
        if led.is_traced and step is not None and step.entropy is not None and step.logprob is not None:
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

    @property
    def flags(self) -> list[int]:
        """Of our rows."""
        if self._flag_list is None:
            self._flag_list = [FALLBACK] * len(self._led.our_rows) if self._flags is None else self._flags.tolist()
        return self._flag_list

    def entry(self, row: int) -> int | tuple[Any, ...] | None:
        """None: not a LED request; int: flags and depth; tuple: the same and the trace. Told once."""
        request = self._led.request_rows[row].request
        if request is None:
            return None
        position = self._led.position.get(row)
        if position is None:
            self._counts.add_engine_token()
            return 0
        flags = self.flags[position]
        reported = flags if not request.params.trace else (flags, *self._trace_of(position, request.params, flags))
        self._is_reported[position] = True
        return reported

    def _trace_of(self, position: int, params: LedParams, flags: int) -> tuple[Any, ...]:
        if self._trace is None or not flags & ACTIVE or flags & FALLBACK:
            return (None,) * len(VALUE_COLUMNS)
        if self._trace_lists is None:
            self._trace_lists = [tensor.tolist() for tensor in self._trace]
        confidence, entropy, logprob, candidates, exploit, explore = (v[position] for v in self._trace_lists)
        k = params.top_k
        depths = None if self._depth_entropy is None else self._depth_entropy[position, : params.depth].tolist()
        return confidence, entropy, logprob, candidates[:k], exploit[:k], explore[:k], depths

    def is_lost(self, row: int) -> bool:
        return self._led.request_rows[row].is_lost

    def failed_entry(self, row: int, req: Any) -> int | None:
        """Of a row whose own could not be told: what the scheduler's request says of it."""
        request = self._led.request_rows[row].request
        if request is None and (wire := (req.sampling_params.custom_params or {}).get(RESOLVED_KEY)) is not None:
            request = ResolvedRequest.from_wire(wire)
        if request is None:
            return None
        if request.params.method == "none":
            self._counts.add_engine_token()
            return 0
        self._counts.correct([FALLBACK], [METHODS.index(request.params.method)], 1)
        return FALLBACK

    def unreported(self) -> tuple[list[int], list[int]]:
        """Flags and methods of our rows that no request has been told of."""
        left = [position for position, is_reported in enumerate(self._is_reported) if not is_reported]
        request_rows = [self._led.request_rows[self._led.our_rows[position]] for position in left]
        return [self.flags[position] for position in left], [request_row.method for request_row in request_rows]

    def close(self) -> None:
        """The step's results have been handed out, and what nobody took does not count.

        The overlap scheduler launches one more step for a request that has just ended, and drops what it gives.
        """
        self._counts.pending.discard(self)
        if not all(self._is_reported):
            self._counts.correct(*self.unreported(), -1)


def collect(original: Any, self: Any, i: int, req: Any, logits_output: Any) -> None:
    """AROUND `_maybe_collect_customized_info`: a request is given its own LED entries, never another's."""
    info = getattr(logits_output, "customized_info", None)
    if info is None or RECORD_KEY not in info:
        original(self, i, req, logits_output)
        return
    _collect_others(original, self, i, req, logits_output, info)
    record: StepRecord = info[RECORD_KEY]
    # With max_new_tokens 0, as for the prefill that n > 1 samples share, the token that was sampled is cut off.
    visible = getattr(req, "finished_len", None)
    if visible is not None and visible < len(req.output_ids):
        return
    entry = record.failed_entry(i, req) if record.is_lost(i) else record.entry(i)
    if entry is not None:
        _entries_of(req).append(entry)


def collect_anyway(original: Any, self: Any, i: int, req: Any, logits_output: Any) -> None:
    """After a fault of `collect`, wherever it came: what it has not done, with the entry of a failed step."""
    info = getattr(logits_output, "customized_info", None)
    if info is None or RECORD_KEY not in info:
        original.once(self, i, req, logits_output)
        return
    if not original.has_returned:
        _collect_others(original, self, i, req, logits_output, info)
    visible = getattr(req, "finished_len", None)
    num_tokens = len(req.output_ids) if visible is None else min(visible, len(req.output_ids))
    while len(_entries_of(req)) < num_tokens:
        entry = info[RECORD_KEY].failed_entry(i, req)
        if entry is None:
            break
        _entries_of(req).append(entry)


def _collect_others(original: Any, self: Any, i: int, req: Any, logits_output: Any, info: dict[str, Any]) -> None:
    """What is not ours."""
    if len(info) > 1:
        logits_output.customized_info = {key: value for key, value in info.items() if key != RECORD_KEY}
        original(self, i, req, logits_output)
        logits_output.customized_info = info


def _entries_of(req: Any) -> list[Any]:
    if req.customized_info is None:
        req.customized_info = {}
    entries: list[Any] = req.customized_info.setdefault(WIRE_KEY, [])
    return entries


def close(returned: Any, self: Any, batch: Any, result: Any) -> None:
    """AFTER `Scheduler.process_batch_result`: whoever was given a token of this step has been."""
    info = getattr(getattr(result, "logits_output", None), "customized_info", None) or {}
    record: StepRecord | None = info.get(RECORD_KEY)
    if record is not None:
        record.close()
