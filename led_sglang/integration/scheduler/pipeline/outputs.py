"""What the last stage knows of a step travels with its tokens to the first one, which answers the clients."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from led_sglang.integration.hooks.guard import change_nothing, handler
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.batch import LedBatch
from led_sglang.integration.scheduler.pipeline.earlier import EarlierStage
from led_sglang.integration.scheduler.recovery import before_start, count_failure
from led_sglang.integration.scheduler.reports.records import StepRecord, to_host, trace_of
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.integration.scheduler.step.call import SamplerCall
from led_sglang.wire import RECORD_KEY

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_pp_mixin import PPBatchMetadata
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

PREFIX = "led_sglang."  # of our tensors among the engine's
FLAGS, NUMBERS, TRACE = PREFIX + "flags", PREFIX + "numbers", PREFIX + "trace."


@dataclass(frozen=True)
class StageOutput:
    """One step of the last stage: what a StepRecord of the first one is made of, on the device."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, led: LedBatch, call: SamplerCall | None, current: Runtime) -> "StageOutput":
        """Without a call, of a step that failed early, nothing is known of its rows."""
        tensors = {NUMBERS: _numbers(current)}
        if call is None:
            return cls(tensors)
        step, inputs = call.known.step, call.inputs
        counters = current.counts.on_device  # of this stage, which nobody asks
        flags = current.backend.count(inputs.row_inputs, step, call.has_failed, inputs.rows.method, counters)
        tensors[FLAGS] = flags[:, None]
        if led.is_traced and step is not None:
            columns = trace_of(step, None, inputs.rows.num_rows, torch.Tensor.contiguous)
            tensors |= {f"{TRACE}{i}": column for i, column in enumerate(columns or ())}
        return cls(tensors)


def _numbers(current: Runtime) -> Tensor:
    """See `earlier.NUMBERS`."""
    steps = current.one_pass_state.num_steps
    numbers = [current.num_step_failures, current.num_engine_head_steps, steps["one_pass"], steps["coin_first"]]
    device = torch.device(current.runner.device)
    pin = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=pin).to(device, non_blocking=True)


@handler(count_failure, change_nothing, before_start)
def send(
    tensors: dict[str, Tensor], self: "Scheduler", result: "GenerationBatchResult", batch: "ScheduleBatch"
) -> None:
    """AFTER SchedulerPPMixin._pp_prepare_tensor_dict: what the last stage sends holds our tensors too."""
    info = getattr(result.logits_output, "customized_info", None) or {}
    output: StageOutput | None = info.get(RECORD_KEY)
    if output is not None:
        tensors.update(output.tensors)


@handler(count_failure, change_nothing, before_start)
def receive(
    result: "GenerationBatchResult",
    self: "Scheduler",
    batch: "ScheduleBatch",
    mb_metadata: "PPBatchMetadata",
    pp_outputs: "PPProxyTensors",
) -> None:
    """AFTER SchedulerPPMixin._pp_prep_batch_result: on the first stage, the step's record is put where it would be."""
    current, led = runtime.stage(), getattr(batch.sampling_info, "led", None)
    if led is None or not isinstance(current, EarlierStage) or not get_parallel().pp_group.is_first_rank:
        return
    record = _record(led, pp_outputs.tensors, batch.batch_size(), current)
    if result.logits_output is None:
        result.logits_output = LogitsProcessorOutput(next_token_logits=None)
    result.logits_output.customized_info = {RECORD_KEY: record}


def _record(led: LedBatch, tensors: dict[str, Tensor], num_rows: int, current: EarlierStage) -> StepRecord:
    """Where the batch is not the one of the step, each request has a step that failed.

    The engine waits for its own copies on this stream before it reads the result: nothing here does.
    """
    if NUMBERS in tensors:
        current.update(to_host(tensors[NUMBERS]))
    flags = tensors.get(FLAGS)
    if len(led.request_rows) != num_rows or (flags is not None and len(flags) != len(led.our_rows)):
        return StepRecord(LedBatch.lost(num_rows), current.counts)
    if flags is None:
        return StepRecord(led, current.counts)
    names = sorted(name for name in tensors if name.startswith(TRACE))
    trace = tuple(to_host(tensors[name]) for name in names) or None
    return StepRecord(led, current.counts, to_host(flags), trace=trace, is_counted=False)
