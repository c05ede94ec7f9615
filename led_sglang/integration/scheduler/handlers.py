"""The hooks around a model runner's forward and its batches: what is captured, which rows are ours, who samples."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from led_sglang.integration.hooks import selfcheck
from led_sglang.integration.hooks.guard import Call, always, call_original, change_nothing, handler
from led_sglang.integration.scheduler import recovery, runtime, startup
from led_sglang.integration.scheduler.batch import LedBatch, request_row_of
from led_sglang.integration.scheduler.recovery import before_start, count_failure, fail_step
from led_sglang.integration.scheduler.step import sampler

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


@handler(fail_step, change_nothing, always)
def start(runner: "ModelRunner") -> None:
    """BEFORE ModelRunner.init_attention_backends. A draft model has a runner of its own, which LED leaves alone."""
    if runner.is_draft_worker:
        return
    selfcheck.verify("scheduler")
    if not isinstance(runner.sampler, sampler.LedSamplerMixin):
        raise selfcheck.HookError(
            f"LED's sampler is not in place, {type(runner.sampler).__name__} is: another plugin's hook on "
            f"create_sampler does not call the original. Remove that plugin or start with --led disabled."
        )
    startup.start(runner)


@handler(fail_step, call_original, always)
def create_sampler(original: Call, backend: str | None = None) -> "Sampler":
    """AROUND create_sampler."""
    return sampler.wrap_sampler(original(backend))


@handler(fail_step, recovery.forward, recovery.is_first_forward)
def before_forward(
    self: "ModelRunner",
    forward_batch: "ForwardBatch",
    pp_proxy_tensors: "PPProxyTensors | None",
    reinit_attn_backend: bool = False,
    split_forward_count: int = 1,
) -> None:
    """BEFORE ModelRunner._forward_raw."""
    current = runtime.runtime()
    if current is not None and self is current.runner:
        current.capture.begin(forward_batch)
        sampler.before_forward(current, forward_batch)


@handler(count_failure, change_nothing, before_start)
def weights_changed(self: "SchedulerWeightUpdaterManager", recv_req: object, success: bool, message: str) -> None:
    """BEFORE SchedulerWeightUpdaterManager.flush_cache_after_weight_update."""
    current = runtime.runtime()
    if current is not None:
        current.follow_weights()


@handler(fail_step, call_original, always)
def init_graphs(original: Call, self: "ModelRunner", capture_decode_cuda_graph: bool = True) -> None:
    """AROUND ModelRunner.init_cuda_graphs."""
    current = runtime.runtime()
    capture_graphs = partial(original, self, capture_decode_cuda_graph)
    if current is not None and self is current.runner:
        current.start_check.run(capture_graphs, lambda: current.head)
    else:
        capture_graphs()
    startup.share_status(self)


@handler(fail_step, recovery.sample, recovery.is_first_forward)
def sample(
    original: Call, self: "ModelRunner", logits_output: "LogitsProcessorOutput", forward_batch: "ForwardBatch"
) -> Tensor:
    """AROUND ModelRunner.sample."""
    current = runtime.runtime()
    if current is None or current.runner is not self:
        return original(self, logits_output, forward_batch)
    current.forward_batch = forward_batch
    current.unedited_logits = sampler.unedited_logits_of(current, forward_batch, logits_output.next_token_logits)
    try:
        return original(self, logits_output, forward_batch)
    finally:
        current.forward_batch, current.unedited_logits = None, {}


@handler(fail_step, recovery.logits, recovery.is_first_forward)
def logits(
    original: Call,
    self: "LogitsProcessor",
    input_ids: Tensor,
    hidden_states: Tensor,
    lm_head: "ParallelLMHead",
    logits_metadata: "ForwardBatch",
    aux_hidden_states: list[Tensor] | Tensor | None = None,
    hidden_states_before_norm: Tensor | None = None,
) -> "LogitsProcessorOutput":
    """AROUND LogitsProcessor.forward. What the engine keeps of layer outputs is its own, and passes through."""
    current = runtime.runtime()
    states = aux_hidden_states, hidden_states_before_norm
    if current is None or not current.owns(self) or not current.capture.is_ready:
        return original(self, input_ids, hidden_states, lm_head, logits_metadata, *states)
    current.bind_head(self, lm_head)
    if _is_dummy_decode(logits_metadata):
        current.one_pass_state.on_graph_warmup(len(hidden_states), runtime.is_capturing())
    latent_rows: AbstractContextManager[None] = nullcontext()
    if current.one_pass_state.is_one_pass:
        latent_rows = current.latent_rows(self, logits_metadata.forward_mode.is_decode())
    with latent_rows:
        result = original(self, input_ids, hidden_states, lm_head, logits_metadata, *states)
    current.has_started = not current.capture.takes_all_batches  # the start's own forwards are none that is served
    return result


def _is_dummy_decode(forward_batch: "ForwardBatch") -> bool:
    """The engine's own batch: the warm-up or the capture of a decode graph.

    The warm-up must run our kernels too, so that none is compiled inside a capture.
    """
    return forward_batch.forward_mode.is_decode() and getattr(forward_batch, "sampling_info", None) is None


@handler(fail_step, recovery.attach_rows, before_start)
def attach_rows(
    result: "SamplingBatchInfo", self: "SamplingBatchInfo", batch: "ScheduleBatch", vocab_size: int
) -> None:
    """AFTER SamplingBatchInfo.adjusted_from_schedule_batch."""
    current = runtime.stage()
    if current is not None:
        self.led = LedBatch.of(tuple(request_row_of(req, current.automaton) for req in batch.reqs))


@handler(fail_step, recovery.filter_rows, before_start)
def filter_rows(result: None, self: "SamplingBatchInfo", keep_indices: list[int], keep_indices_device: Tensor) -> None:
    """AFTER SamplingBatchInfo.adjusted_filter_batch."""
    led = getattr(self, "led", None)
    if led is not None:
        self.led = led.filter(keep_indices)


@handler(fail_step, recovery.merge_rows, before_start)
def merge_rows(result: None, self: "SamplingBatchInfo", other: "SamplingBatchInfo") -> None:
    """AFTER SamplingBatchInfo.adjusted_merge_batch."""
    right_size = len(other)
    self.led = LedBatch.merge(
        getattr(self, "led", None), len(self) - right_size, getattr(other, "led", None), right_size
    )


@handler(fail_step, recovery.copy_rows, before_start)
def copy_rows(result: "SamplingBatchInfo", self: "SamplingBatchInfo") -> None:
    """AFTER SamplingBatchInfo.copy_for_forward."""
    result.led = getattr(self, "led", None)
