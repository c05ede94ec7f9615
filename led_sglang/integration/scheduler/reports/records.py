"""What a step tells about its rows, on its way from the device to the request's `meta_info`."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHODS
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.hooks.guard import Call, change_nothing, handler
from led_sglang.integration.scheduler.recovery import before_start, count_failure
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops.constants import NOT_COUNTED
from led_sglang.ops.types import LedStep
from led_sglang.wire import ACTIVE, FALLBACK, RECORD_KEY, RESOLVED_KEY, VALUE_COLUMNS, WIRE_KEY

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
    from sglang.srt.managers.utils import GenerationBatchResult

    from led_sglang.integration.scheduler.batch import LedBatch
    from led_sglang.integration.scheduler.speculation.nodes import VerifyInputs
    from led_sglang.integration.scheduler.speculation.outcome import Outcome
    from led_sglang.integration.scheduler.step.call import SamplerCall


def to_host(tensor: Tensor) -> Tensor:
    """Start copying to pinned memory; the engine waits for its own copies on the same stream before reading results."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class StepRecord:
    """One step's LED facts; `entry(row)` is read once the step's results are on the host."""

    def __init__(
        self,
        led: "LedBatch",
        counts: Counts,
        flags: Tensor | None = None,
        num_tokens: Tensor | None = None,
        trace: tuple[Tensor, ...] | None = None,
        is_counted: bool = True,
    ) -> None:
        """flags: (R, N) int64; None: no more is known of the step than its rows, and their tokens count as those of a
        failed step. is_counted: this process's device has counted the flags; else they count as they are given out.

        num_tokens: (R,), how many of the N tokens of each request there are; None: one. trace: as `trace_of`.
        """
        self._led = led
        self._counts = counts
        self._flags = flags
        self._num_tokens = num_tokens
        self._trace = trace
        self._num_reported = [0] * len(led.our_rows)
        self._is_counted = is_counted and flags is not None
        if led.our_rows and self._is_counted:
            counts.pending.add(self)

    @classmethod
    def of(cls, led: "LedBatch", call: "SamplerCall | None", current: Runtime) -> "StepRecord":
        counts = current.counts
        if call is None:
            return cls(led, counts)
        step, inputs = call.known.step, call.inputs
        flags = current.backend.count(inputs.row_inputs, step, call.has_failed, inputs.rows.method, counts.on_device)
        trace = trace_of(step, None, inputs.rows.num_rows, to_host) if led.is_traced and step is not None else None
        return cls(led, counts, to_host(flags[:, None]), trace=trace)

    @classmethod
    def of_verify(
        cls,
        led: "LedBatch",
        inputs: "VerifyInputs | None",
        step: LedStep | None,
        outcome: "Outcome",
        has_failed: bool,
        current: Runtime,
    ) -> "StepRecord":
        """Of a verification: our requests' accepted tokens, in order."""
        counts = current.counts
        if inputs is None:
            return cls(led, counts)
        rows, nodes = inputs.rows, inputs.nodes
        is_ours = outcome.is_path & nodes.is_ours[:, None]
        num_rows = len(nodes.method)
        is_accepted = torch.zeros(num_rows + 1, dtype=torch.bool, device=is_ours.device)  # the last: behind a path
        is_accepted[torch.where(is_ours, outcome.path, num_rows).view(-1)] = True
        method = nodes.method.where(is_accepted[:num_rows], NOT_COUNTED)
        path = rows.pick(outcome.path)  # (R, D)
        trace = trace_of(step, path.view(-1), len(path), to_host) if led.is_traced and step is not None else None
        num_tokens = to_host(rows.pick(outcome.accept_lens))
        flags = current.backend.count(inputs.row_inputs, step, has_failed, method, counts.on_device)
        return cls(led, counts, to_host(flags[path]), num_tokens, trace)

    @cached_property
    def num_tokens(self) -> list[int]:
        """Of our rows, as far as they are known."""
        if self._num_tokens is None:
            return [0 if self._flags is None else 1] * len(self._led.our_rows)
        return self._num_tokens.tolist()

    @cached_property
    def flags(self) -> list[list[int]]:
        """Of our rows' tokens, as far as they are known."""
        known = [[] for _ in self.num_tokens] if self._flags is None else self._flags.tolist()
        return [flags[:num] for flags, num in zip(known, self.num_tokens, strict=True)]

    @cached_property
    def _trace_lists(self) -> list[Any]:
        """By column, row and token."""
        assert self._trace is not None
        return [tensor.tolist() for tensor in self._trace]

    def entries(self, row: int, most: int) -> list[int | tuple[Any, ...]]:
        """Of the first `most` tokens of a row: flags and depth; a tuple: the same and the trace. Given out once.

        Empty for a request that neither asked for LED nor gets it by default.
        """
        request = self._led.request_rows[row].request
        if request is None:
            return []
        position = self._led.position.get(row)
        if position is None:  # plain sampling: the record does not know how many tokens there are
            self._counts.add_engine_tokens(most)
            return [0] * most
        flags = [FALLBACK] * most if self._flags is None else self.flags[position][:most]
        self._num_reported[position] = len(flags)
        if not self._is_counted:
            self._counts.correct(flags, [METHODS.index(request.params.method)] * len(flags), 1)
        if not request.params.trace:
            return list(flags)
        return [(flag, *self._trace_at(position, n, request.params, flag)) for n, flag in enumerate(flags)]

    def _trace_at(self, position: int, token: int, params: LedParams, flags: int) -> tuple[Any, ...]:
        if self._trace is None or not flags & ACTIVE or flags & FALLBACK:
            return (None,) * len(VALUE_COLUMNS)
        confidence, entropy, logprob, candidates, exploit, explore, *depths = (
            column[position][token] for column in self._trace_lists
        )
        k = params.top_k
        depth_entropy = depths[0][: params.depth] if depths else None
        return confidence, entropy, logprob, candidates[:k], exploit[:k], explore[:k], depth_entropy

    def is_lost(self, row: int) -> bool:
        return self._led.request_rows[row].is_lost

    def failed_entry(self, row: int, req: "Req") -> int | None:
        """Of a row whose own could not be told: what the scheduler's request says of it."""
        request = self._led.request_rows[row].request
        if request is None and (wire := (req.sampling_params.custom_params or {}).get(RESOLVED_KEY)) is not None:
            request = ResolvedRequest.from_wire(wire)
        if request is None:
            return None
        if request.params.method == "none":
            self._counts.add_engine_tokens(1)
            return 0
        self._counts.correct([FALLBACK], [METHODS.index(request.params.method)], 1)
        return FALLBACK

    def unreported(self) -> tuple[list[int], list[int]]:
        """Flags and methods of our rows' tokens that no request has been given."""
        flags: list[int] = []
        methods: list[int] = []
        for row, row_flags, num_reported in zip(self._led.our_rows, self.flags, self._num_reported, strict=True):
            left = row_flags[num_reported:]
            flags += left
            methods += [self._led.request_rows[row].method] * len(left)
        return flags, methods

    def close(self) -> None:
        """The step's results have been handed out, and what nobody took does not count.

        The overlap scheduler launches one more step for a request that has just ended, and drops what it gives.
        """
        self._counts.pending.discard(self)
        if self._is_counted and self._num_reported != self.num_tokens:
            self._counts.correct(*self.unreported(), -1)


def trace_of(
    step: LedStep, token_rows: Tensor | None, num_rows: int, put: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...] | None:
    """VALUE_COLUMNS of some token rows, R of each of our rows' tokens, None = all: (R, N, ...) each; None: no trace."""
    columns = (
        step.confidence,
        step.entropy,
        step.logprob,
        step.candidate_ids,
        step.exploit_probs,
        step.explore_probs,
        step.depth_entropy,
    )
    if step.entropy is None or step.logprob is None:
        return None
    found = (column if token_rows is None else column[token_rows] for column in columns if column is not None)
    return tuple(put(column.view(num_rows, -1, *column.shape[1:])) for column in found)


def collect_anyway(call: Call) -> None:
    """After a fault of `collect`, wherever it came: what it has not done, with the entry of a failed step."""
    logits_output, i, req = call["logits_output"], call["i"], call["req"]
    info = getattr(logits_output, "customized_info", None)
    if info is None or RECORD_KEY not in info:
        call.once()
        return
    if not call.has_returned:
        _collect_others(call, call["self"], i, req, logits_output)
    _add_failed(info[RECORD_KEY], i, req, num_missing(req))


def num_missing(req: "Req") -> int:
    """Tokens of the answer without an entry.

    A stop inside a run of accepted tokens cuts off those behind it, and max_new_tokens 0, as for the prefill that n > 1
    samples share, the token that was sampled.
    """
    visible = getattr(req, "finished_len", None)
    num_tokens = len(req.output_ids) if visible is None else min(visible, len(req.output_ids))
    return num_tokens - len((req.customized_info or {}).get(WIRE_KEY, ()))


def _add_failed(record: StepRecord, i: int, req: "Req", num_tokens: int) -> None:
    for _ in range(num_tokens):
        entry = record.failed_entry(i, req)
        if entry is None:
            break
        entries_of(req).append(entry)


@handler(count_failure, collect_anyway, before_start)
def collect(
    original: Call,
    self: "SchedulerBatchResultProcessor",
    i: int,
    req: "Req",
    logits_output: "LogitsProcessorOutput",
) -> None:
    """AROUND `_maybe_collect_customized_info`: a request is given its own LED entries, never another's."""
    info = getattr(logits_output, "customized_info", None)
    if info is None or RECORD_KEY not in info:
        original(self, i, req, logits_output)
        return
    _collect_others(original, self, i, req, logits_output)
    give(info[RECORD_KEY], i, req)


def give(record: StepRecord, row: int, req: "Req") -> None:
    """A request's own entries of a step, whose tokens it has."""
    num_tokens = num_missing(req)
    if record.is_lost(row):
        _add_failed(record, row, req, num_tokens)
    elif num_tokens > 0 and (entries := record.entries(row, num_tokens)):
        entries_of(req).extend(entries)


def _collect_others(
    original: Call,
    self: "SchedulerBatchResultProcessor",
    i: int,
    req: "Req",
    logits_output: "LogitsProcessorOutput",
) -> None:
    """What is not ours."""
    info = logits_output.customized_info
    if len(info) > 1:
        logits_output.customized_info = {key: value for key, value in info.items() if key != RECORD_KEY}
        original(self, i, req, logits_output)
        logits_output.customized_info = info


def entries_of(req: "Req") -> list[Any]:
    if req.customized_info is None:
        req.customized_info = {}
    entries: list[Any] = req.customized_info.setdefault(WIRE_KEY, [])
    return entries


@handler(count_failure, change_nothing, before_start)
def close(returned: None, self: "Scheduler", batch: "ScheduleBatch", result: "GenerationBatchResult") -> None:
    """AFTER `Scheduler.process_batch_result`: every request has the tokens that it is given of this step."""
    info = getattr(getattr(result, "logits_output", None), "customized_info", None) or {}
    record: StepRecord | None = info.get(RECORD_KEY)
    if record is not None:
        record.close()
