"""The hooks table: a handler for every target of `targets.HOOK_TARGETS`, and its registration with SGLang."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from led_sglang.integration.hooks import selfcheck
from led_sglang.integration.hooks.guard import (
    Guarded,
    always,
    call_original,
    change_nothing,
    is_capturing,
    never,
    refuse,
)
from led_sglang.integration.hooks.targets import HOOK_TARGETS
from led_sglang.integration.http import info, requests
from led_sglang.integration.scheduler import records, recovery, runtime, sampler
from led_sglang.integration.scheduler.batch import LedBatch, request_row_of
from led_sglang.integration.scheduler.recovery import before_start, count_failure, fail_step


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
    current.unedited_logits = sampler.unedited_logits_of(current, forward_batch, logits_output.next_token_logits)
    try:
        return original(self, logits_output, forward_batch)
    finally:
        current.forward_batch, current.unedited_logits = None, {}


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
    current.bind_head(self, lm_head)
    if _is_wanted(logits_metadata):
        last_index = None
        if logits_metadata.forward_mode.is_extend() and logits_metadata.extend_seq_lens is not None:
            last_index = torch.cumsum(logits_metadata.extend_seq_lens, dim=0) - 1
        current.capture.store(aux_hidden_states, last_index, len(hidden_states))
    else:
        current.capture.drop()
    if _is_dummy_decode(logits_metadata):
        current.one_pass_state.on_graph_warmup(len(hidden_states), is_capturing())
    latent_rows: AbstractContextManager[None] = nullcontext()
    if current.one_pass_state.is_one_pass:
        latent_rows = current.latent_rows(self, logits_metadata.forward_mode.is_decode())
    with latent_rows:
        result = original(self, input_ids, hidden_states, lm_head, logits_metadata, None, hidden_states_before_norm)
    current.has_started = True
    return result


def _is_wanted(forward_batch: Any) -> bool:
    """Outside a graph capture and its warm-up, a batch without LED rows needs no copy."""
    sampling_info = getattr(forward_batch, "sampling_info", None)
    if getattr(sampling_info, "led", None) is not None:
        return True
    return _is_dummy_decode(forward_batch) or is_capturing()


def _is_dummy_decode(forward_batch: Any) -> bool:
    """The engine's own batch, nobody's request: the warm-up or the capture of a decode graph.

    The warm-up must run our kernels too, so that none is compiled inside a capture.
    """
    return forward_batch.forward_mode.is_decode() and getattr(forward_batch, "sampling_info", None) is None


def _create_sampler(original: Any, backend: str | None = None) -> Any:
    return sampler.wrap_sampler(original(backend))


def _attach_rows(result: Any, self: Any, batch: Any, vocab_size: int) -> None:
    current = runtime.runtime()
    if current is not None:
        self.led = LedBatch.of(tuple(request_row_of(req, current.automaton) for req in batch.reqs))


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
RUNNER = S + "model_executor.model_runner.ModelRunner."


class Row(NamedTuple):
    """A handler, what counts its faults, what is done after one, and when it is raised instead."""

    handler: Callable[..., Any]
    note: Callable[[str], None]
    recover: Callable[..., Any]
    is_start: Callable[..., bool] = never


ROWS: dict[str, Row] = {
    RUNNER + "init_attention_backends": Row(_start, fail_step, change_nothing, always),
    RUNNER + "_forward_raw": Row(_forward, fail_step, recovery.forward, recovery.is_start_of_forward),
    RUNNER + "sample": Row(_sample, fail_step, recovery.sample, recovery.is_start_of_sample),
    S + "layers.logits_processor.LogitsProcessor.forward": Row(
        _logits, fail_step, recovery.logits, recovery.is_start_of_logits
    ),
    S + "layers.sampler.create_sampler": Row(_create_sampler, fail_step, call_original, always),
    BATCH_INFO + "adjusted_from_schedule_batch": Row(_attach_rows, fail_step, recovery.request_row, before_start),
    BATCH_INFO + "adjusted_filter_batch": Row(_filter, fail_step, recovery.filter_rows, before_start),
    BATCH_INFO + "adjusted_merge_batch": Row(_merge, fail_step, recovery.merge, before_start),
    BATCH_INFO + "copy_for_forward": Row(_copy, fail_step, recovery.copy, before_start),
    S + "sampling.sampling_params.SamplingParams.verify": Row(requests.verify, requests.count_failure, refuse),
    TOKENIZER + "_send_one_request": Row(requests.resolve_one, requests.count_failure, refuse),
    TOKENIZER + "_send_batch_request": Row(requests.resolve_batch, requests.count_failure, refuse),
    TOKENIZER + "_handle_batch_output": Row(requests.take_entries, requests.count_failure, requests.lose_entries),
    TOKENIZER + "_wait_one_response": Row(requests.respond, requests.count_failure, requests.respond_anyway),
    S + "entrypoints.openai.protocol.ResponsesRequest.to_sampling_params": Row(
        requests.add_to_responses, requests.count_failure, refuse
    ),
    PROCESSOR + "_maybe_collect_customized_info": Row(
        records.collect, count_failure, records.collect_anyway, before_start
    ),
    S + "managers.scheduler.Scheduler.process_batch_result": Row(
        records.close, count_failure, change_nothing, before_start
    ),
    S + "managers.scheduler.Scheduler.get_internal_state": Row(
        info.add_scheduler_status, count_failure, info.say_fault, before_start
    ),
}
HANDLERS: dict[str, Guarded] = {
    target: Guarded(target, *row, is_around=HOOK_TARGETS[target].kind == "around") for target, row in ROWS.items()
}


def register_hooks() -> None:
    """Register every hook with SGLang's registry; `HookRegistry.apply_hooks` patches the targets afterwards."""
    for target, spec in HOOK_TARGETS.items():
        HookRegistry.register(target, HANDLERS[target], HookType(spec.kind))
