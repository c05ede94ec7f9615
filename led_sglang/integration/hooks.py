"""The hooks table: a handler for every target of `targets.HOOK_TARGETS`, and its registration with SGLang."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from led_sglang.integration import info, records, requests, runtime, sampler, selfcheck
from led_sglang.integration.batch import LedBatch, seat_request
from led_sglang.integration.targets import HOOK_TARGETS


def _start(runner: Any) -> None:
    selfcheck.verify("scheduler")
    if not isinstance(runner.sampler, sampler.LedSamplerMixin):
        raise selfcheck.HookError(
            f"LED's sampler is not in place, {type(runner.sampler).__name__} is: another plugin's hook on "
            f"create_sampler does not call the original. Remove that plugin or start with --led disabled."
        )
    runtime.start(runner)


def _forward(
    self: Any,
    forward_batch: Any,
    pp_proxy_tensors: Any,
    reinit_attn_backend: bool = False,
    split_forward_count: int = 1,
) -> None:
    current = runtime.runtime()
    if current is not None:
        sampler.before_forward(current, forward_batch)


def _sample(original: Any, self: Any, logits_output: Any, forward_batch: Any) -> Any:
    current = runtime.runtime()
    if current is None:
        return original(self, logits_output, forward_batch)
    current.forward_batch = forward_batch
    current.plain_logits = sampler.plain_logits_of(current, forward_batch, logits_output.next_token_logits)
    try:
        return original(self, logits_output, forward_batch)
    finally:
        current.forward_batch, current.plain_logits = None, {}


def _logits(
    original: Any,
    self: Any,
    input_ids: Any,
    hidden_states: Any,
    lm_head: Any,
    logits_metadata: Any,
    aux_hidden_states: Any = None,
    hidden_states_before_norm: Any = None,
) -> Any:
    """`aux_hidden_states` are ours: the engine is shown None, so that `return_hidden_states` keeps its meaning."""
    current = runtime.runtime()
    if current is None:
        return original(
            self, input_ids, hidden_states, lm_head, logits_metadata, aux_hidden_states, hidden_states_before_norm
        )
    current.see_head(self, lm_head)
    if _is_wanted(logits_metadata):
        last_index = None
        if logits_metadata.forward_mode.is_extend() and logits_metadata.extend_seq_lens is not None:
            last_index = torch.cumsum(logits_metadata.extend_seq_lens, dim=0) - 1
        current.capture.store(aux_hidden_states, last_index)
    else:
        current.capture.drop()
    if _is_dummy_decode(logits_metadata):
        current.ride.see_dummy(len(hidden_states), _is_capturing())
    riders: AbstractContextManager[None] = nullcontext()
    if current.ride.is_boarding:
        riders = current.riders(self, logits_metadata.forward_mode.is_decode())
    with riders:
        return original(self, input_ids, hidden_states, lm_head, logits_metadata, None, hidden_states_before_norm)


def _is_wanted(forward_batch: Any) -> bool:
    """Outside a graph capture and its warm-up, a batch without LED rows needs no copy."""
    sampling_info = getattr(forward_batch, "sampling_info", None)
    if getattr(sampling_info, "led", None) is not None:
        return True
    return _is_dummy_decode(forward_batch) or _is_capturing()


def _is_dummy_decode(forward_batch: Any) -> bool:
    """The engine's own batch, nobody's request: the warm-up or the capture of a decode graph.

    The warm-up must run our kernels too, so that none is compiled inside a capture.
    """
    return forward_batch.forward_mode.is_decode() and getattr(forward_batch, "sampling_info", None) is None


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _create_sampler(original: Any, backend: str | None = None) -> Any:
    return sampler.dress(original(backend))


def _seat(result: Any, self: Any, batch: Any, vocab_size: int) -> None:
    current = runtime.runtime()
    if current is not None:
        self.led = LedBatch.of(tuple(seat_request(req, current.machine) for req in batch.reqs))


def _filter(result: Any, self: Any, keep_indices: list[int], keep_indices_device: Any) -> None:
    led = getattr(self, "led", None)
    if led is not None:
        self.led = led.filter(keep_indices)


def _merge(result: Any, self: Any, other: Any) -> None:
    right_size = len(other)
    self.led = LedBatch.merge(
        getattr(self, "led", None), len(self) - right_size, getattr(other, "led", None), right_size
    )


def _copy(result: Any, self: Any) -> None:
    result.led = getattr(self, "led", None)


S = "sglang.srt."
BATCH_INFO = S + "sampling.sampling_batch_info.SamplingBatchInfo."
TOKENIZER = S + "managers.tokenizer_manager.TokenizerManager."
PROCESSOR = S + "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor."

HANDLERS: dict[str, Callable[..., Any]] = {
    S + "model_executor.model_runner.ModelRunner.init_attention_backends": _start,
    S + "model_executor.model_runner.ModelRunner._forward_raw": _forward,
    S + "model_executor.model_runner.ModelRunner.sample": _sample,
    S + "layers.logits_processor.LogitsProcessor.forward": _logits,
    S + "layers.sampler.create_sampler": _create_sampler,
    BATCH_INFO + "adjusted_from_schedule_batch": _seat,
    BATCH_INFO + "adjusted_filter_batch": _filter,
    BATCH_INFO + "adjusted_merge_batch": _merge,
    BATCH_INFO + "copy_for_forward": _copy,
    S + "sampling.sampling_params.SamplingParams.verify": requests.verify,
    TOKENIZER + "_send_one_request": requests.stamp_one,
    TOKENIZER + "_send_batch_request": requests.stamp_batch,
    TOKENIZER + "_handle_batch_output": requests.take_entries,
    TOKENIZER + "_wait_one_response": requests.respond,
    S + "entrypoints.openai.protocol.ResponsesRequest.to_sampling_params": requests.add_to_responses,
    PROCESSOR + "_maybe_collect_customized_info": records.collect,
    S + "managers.scheduler.Scheduler.process_batch_result": records.close,
    S + "managers.scheduler.Scheduler.get_internal_state": info.add_scheduler_facts,
}


def register_hooks() -> None:
    """Register every hook with SGLang's registry; `HookRegistry.apply_hooks` patches the targets afterwards."""
    for target, spec in HOOK_TARGETS.items():
        HookRegistry.register(target, HANDLERS[target], HookType(spec.kind))
