"""What we hook in SGLang, as data: imports nothing, so that a bare wheel can be checked.

A hook is one row: its target in SGLang, how, the target's parameters, why, and the handler by name.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["before", "after", "around"]
HANDLER_ROOT = "led_sglang.integration"


def numbers_of(release: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.5.23.post1" is (0, 5, 23)."""
    match = re.match(r"\d+(\.\d+)*", release)
    return tuple(map(int, match.group().split("."))) if match else ()


@dataclass(frozen=True)
class HookTarget:
    """One hooked function: how, the parameters that the handler was written for (in order), why, and the handler."""

    kind: Kind
    parameters: tuple[str, ...]
    why: str
    handler: str  # below HANDLER_ROOT: a `hooks.guard.Handler`
    since: str = "0.5.17"  # the first supported release that has the function with these parameters

    @property
    def process(self) -> Literal["scheduler", "http"]:
        """Where the function is called, and the handler is imported."""
        return "http" if self.handler.startswith("http.") else "scheduler"


def hooks_of(release: str) -> dict[str, HookTarget]:
    """The rows that belong to a release of SGLang; a feature that needs another one is refused there."""
    return {target: spec for target, spec in HOOK_TARGETS.items() if numbers_of(spec.since) <= numbers_of(release)}


S = "sglang.srt."
BATCH_INFO = S + "sampling.sampling_batch_info.SamplingBatchInfo."
EAGLE_SAMPLE = S + "speculative.eagle_utils.eagle_sample"
PP_PREPARE = S + "managers.scheduler_pp_mixin.SchedulerPPMixin._pp_prepare_tensor_dict"
PP_RECEIVE = S + "managers.scheduler_pp_mixin.SchedulerPPMixin._pp_prep_batch_result"
PREFILL = S + "disaggregation.prefill.SchedulerDisaggregationPrefillMixin."
METADATA = S + "disaggregation.utils.MetadataBuffers."
COMMIT = S + "disaggregation.decode.DecodeTransferQueue._commit_transfer_to_req"
WEIGHTS_CHANGED = S + "managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager."
WEIGHTS_CHANGED += "flush_cache_after_weight_update"
TOKENIZER = S + "managers.tokenizer_manager.TokenizerManager."

HOOK_TARGETS: dict[str, HookTarget] = {
    S + "model_executor.model_runner.ModelRunner.init_attention_backends": HookTarget(
        "before",
        ("self",),
        "wrap the model's layers before CUDA graphs are captured; verify every hook",
        "scheduler.handlers.start",
    ),
    S + "model_executor.model_runner.ModelRunner.init_cuda_graphs": HookTarget(
        "around",
        ("self", "capture_decode_cuda_graph"),
        "run the start check before and after CUDA graphs are captured",
        "scheduler.handlers.init_graphs",
    ),
    S + "model_executor.model_runner.ModelRunner._forward_raw": HookTarget(
        "before",
        ("self", "forward_batch", "pp_proxy_tensors", "reinit_attn_backend", "split_forward_count"),
        "say which rows' latents the head's weight pass of this forward covers",
        "scheduler.handlers.before_forward",
    ),
    S + "model_executor.model_runner.ModelRunner.sample": HookTarget(
        "around",
        ("self", "logits_output", "forward_batch"),
        "show the sampler the forward's batch",
        "scheduler.handlers.sample",
    ),
    S + "layers.logits_processor.LogitsProcessor.forward": HookTarget(
        "around",
        (
            "self",
            "input_ids",
            "hidden_states",
            "lm_head",
            "logits_metadata",
            "aux_hidden_states",
            "hidden_states_before_norm",
        ),
        "cover latent rows in the head's weight pass",
        "scheduler.handlers.logits",
    ),
    EAGLE_SAMPLE: HookTarget(
        "around",
        (
            "verify_input",
            "batch",
            "logits_output",
            "grammar_mask",
            "uno_target_max_top_k",
            "watermark_state",
            "watermark_full_mask",
        ),
        "LED's tokens decide which drafts are accepted",
        "scheduler.speculation.verify.verify",
        since="0.5.23",
    ),
    S + "layers.sampler.create_sampler": HookTarget(
        "around", ("backend",), "put our sampler over the user's backend", "scheduler.handlers.create_sampler"
    ),
    BATCH_INFO + "adjusted_from_schedule_batch": HookTarget(
        "after",
        ("self", "batch", "vocab_size"),
        "attach each row's LED parameters and thinking state",
        "scheduler.handlers.attach_rows",
    ),
    BATCH_INFO + "adjusted_filter_batch": HookTarget(
        "after",
        ("self", "keep_indices", "keep_indices_device"),
        "keep LED rows in step with the batch",
        "scheduler.handlers.filter_rows",
    ),
    BATCH_INFO + "adjusted_merge_batch": HookTarget(
        "after", ("self", "other"), "keep LED rows in step with the batch", "scheduler.handlers.merge_rows"
    ),
    BATCH_INFO + "copy_for_forward": HookTarget(
        "after", ("self",), "the copy keeps the LED rows", "scheduler.handlers.copy_rows"
    ),
    S + "sampling.sampling_params.SamplingParams.verify": HookTarget(
        "around", ("self", "vocab_size"), "refuse bad LED parameters with HTTP 400", "http.requests.verify"
    ),
    TOKENIZER + "_send_one_request": HookTarget(
        "before",
        ("self", "tokenized_obj"),
        "resolve parameters, seed and sample index of a request",
        "http.requests.resolve_one",
    ),
    TOKENIZER + "_send_batch_request": HookTarget(
        "before", ("self", "tokenized_objs"), "the same for requests sent as one batch", "http.requests.resolve_batch"
    ),
    TOKENIZER + "_handle_batch_output": HookTarget(
        "before",
        ("self", "recv_obj"),
        "take the step records out of the scheduler's answer",
        "http.responses.take_entries",
    ),
    TOKENIZER + "_wait_one_response": HookTarget(
        "around",
        ("self", "obj", "request"),
        "led_params, led_stats and the trace join meta_info",
        "http.responses.respond",
    ),
    S + "entrypoints.openai.protocol.ResponsesRequest.to_sampling_params": HookTarget(
        "after",
        ("self", "default_max_tokens", "default_params", "stop", "tool_call_constraint"),
        "/v1/responses has no custom_params: LED's parameters travel in metadata",
        "http.requests.add_to_responses",
    ),
    S + "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
    "._maybe_collect_customized_info": HookTarget(
        "around",
        ("self", "i", "req", "logits_output"),
        "give each request its own step records only",
        "scheduler.reports.records.collect",
    ),
    S + "managers.scheduler.Scheduler._add_request_to_queue": HookTarget(
        "around",
        ("self", "req", "is_retracted"),
        "refuse requests whose LED parameters no front end has resolved",
        "scheduler.intake.admit",
    ),
    S + "managers.scheduler.Scheduler.process_batch_result": HookTarget(
        "after",
        ("self", "batch", "result"),
        "take out of the counters what the overlap scheduler drops",
        "scheduler.reports.records.close",
    ),
    PP_PREPARE: HookTarget(
        "after",
        ("self", "result", "batch"),
        "a step's record travels with its tokens to the pipeline stage that answers",
        "scheduler.pipeline.outputs.send",
        since="0.5.23",
    ),
    PP_RECEIVE: HookTarget(
        "after",
        ("self", "batch", "mb_metadata", "pp_outputs"),
        "it arrives there",
        "scheduler.pipeline.outputs.receive",
        since="0.5.23",
    ),
    PREFILL + "process_batch_result_disagg_prefill": HookTarget(
        "before",
        ("self", "batch", "result"),
        "a prefill server's requests find the records of their first tokens",
        "scheduler.disaggregation.handoff.remember",
        since="0.5.23",
    ),
    PREFILL + "checkpoint_disagg_prefill": HookTarget(
        "before",
        ("self", "req"),
        "a prefill server's request is given the record of its first token",
        "scheduler.disaggregation.handoff.give_first",
        since="0.5.23",
    ),
    METADATA + "get_buf_infos": HookTarget(
        "after",
        ("self",),
        "what travels to a decode server has a buffer of records",
        "scheduler.disaggregation.handoff.add_buffer",
        since="0.5.23",
    ),
    METADATA + "set_buf": HookTarget(
        "after", ("self", "req"), "the record goes there", "scheduler.disaggregation.handoff.write", since="0.5.23"
    ),
    METADATA + "clear_slot": HookTarget(
        "after",
        ("self", "idx"),
        "no record is another request's",
        "scheduler.disaggregation.handoff.clear",
        since="0.5.23",
    ),
    COMMIT: HookTarget(
        "after",
        ("self", "decode_req"),
        "the record of its first token is a decode server's request's",
        "scheduler.disaggregation.handoff.take_first",
        since="0.5.23",
    ),
    WEIGHTS_CHANGED: HookTarget(
        "before",
        ("self", "recv_req", "success", "message"),
        "the 8-bit copy of the LM head follows an update of the weights",
        "scheduler.handlers.weights_changed",
        since="0.5.23",
    ),
    S + "managers.scheduler.Scheduler.get_internal_state": HookTarget(
        "after",
        ("self", "recv_req"),
        "carry the scheduler's LED facts and counters to /led/info and /metrics",
        "scheduler.reports.status.add_status",
    ),
}
