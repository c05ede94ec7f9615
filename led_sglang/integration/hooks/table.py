"""What we hook in SGLang and what we rely on, as data: imports nothing, so that a bare wheel can be checked.

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
    S + "managers.scheduler.Scheduler.get_internal_state": HookTarget(
        "after",
        ("self", "recv_req"),
        "carry the scheduler's LED facts and counters to /led/info and /metrics",
        "scheduler.reports.status.add_status",
    ),
}

RELIED_ON: tuple[tuple[str, str], ...] = (
    (
        S + "layers.sampler.Sampler.forward",
        "calls _preprocess_logits, then samples, then logprobs, then the token sync",
    ),
    (
        S + "layers.logits_processor.LogitsProcessor._compute_lm_head",
        "wrapped on the instance while its weight pass covers latents; called for the latents of a quantised head",
    ),
    (S + "layers.logits_processor.should_apply_lm_head_quant_method", "tells a quantised head from a plain one"),
    (S + "layers.sampler.Sampler._preprocess_logits", "replaced: the LED step runs on its result"),
    (
        S + "layers.sampler.Sampler._sample_from_probs",
        "replaced: seeded rows outside the thinking phase, and rows that LED decided",
    ),
    (S + "layers.sampler.Sampler._sync_token_ids_across_tp", "replaced: last look at the tokens of a step"),
    (
        BATCH_INFO + "apply_logits_bias",
        "penalties, then a grammar's mask, then the bias: `ops.edits` has the same order",
    ),
    (BATCH_INFO + "update_penalties", "tables of the accumulated penalties, additive and scaling"),
    (S + "sampling.penaltylib.repetition_penalty.apply_scaling_penalties", "the arithmetic of a repetition penalty"),
    (S + "managers.schedule_batch.ScheduleBatch.init_new", "makes the batch of the start's own forwards"),
    (S + "managers.schedule_batch.ScheduleBatch.prepare_for_extend", "gives its prompts their slots"),
    (S + "managers.schedule_batch.ScheduleBatch.prepare_for_decode", "and its next tokens theirs"),
    (S + "model_executor.forward_batch_info.ForwardBatch.init_new", "what a forward reads of it"),
    (S + "model_executor.runner.eager_runner.EagerRunner.__init__", "runs forwards before graphs are captured"),
    (S + "model_executor.model_runner.ModelRunner.forward", "dispatches a batch to a graph or the eager runner"),
    (S + "sampling.sampling_params.SamplingParams.__post_init__", "writes temperature 0 as top_k 1"),
    (S + "entrypoints.http_server.ollama_chat", "its path comes from a variable; found by the function's name"),
    (S + "entrypoints.http_server.ollama_generate", "its path comes from a variable; found by the function's name"),
    (S + "entrypoints.http_server.vertex_generate", "its path comes from a variable; found by the function's name"),
    (S + "utils.common.add_prometheus_middleware", "wrapped: /metrics answers with LED's numbers too"),
    (S + "disaggregation.utils.prepare_abort", "ends a request that is refused in the scheduler"),
    (S + "plugins.load_plugins", "runs our register() and applies the hooks"),
    (S + "plugins.hook_registry.HookRegistry.apply_hooks", "patches the targets and swallows failures"),
    (S + "managers.io_struct.wrap_as_pickle", "how customized_info travels between processes"),
    (S + "managers.io_struct.unwrap_from_pickle", "how customized_info travels between processes"),
    (S + "managers.scheduler.run_scheduler_process", "wrapped: no scheduler starts with a hook missing"),
    (
        TOKENIZER + "_coalesce_streaming_chunks",
        "the meta_info of several chunks in one is the last one's, completion_tokens too: up to there goes its trace",
    ),
    (
        TOKENIZER + "_handle_abort_req",
        "ends a request that was aborted in the queue: completion_tokens are those of the chunks before",
    ),
    (S + "server_args.prepare_server_args", "reads the arguments of a start, once a file is merged into them"),
    (S + "server_args.ServerArgs.add_cli_args", "the parser that tells which arguments were said"),
    (S + "server_args.ServerArgs.check_server_args", "what the launch refuses, asked before weights are loaded"),
    (S + "parser.template_detection.resolve_auto_parsers", "the reasoning parser that the launch will settle on"),
    (S + "lora.utils.get_normalized_target_modules", "which LoRA targets are the LM head"),
)

RELIED_ON_SINCE: dict[str, tuple[tuple[str, str], ...]] = {  # by the first release known to have them
    "0.5.23": (
        (
            S + "entrypoints.http_server._setup_and_run_http_server",
            "tokenizer workers import the app that SGLANG_HTTP_SERVER_APP_PATH names",
        ),
        (S + "managers.scheduler.Scheduler._release_aborted_request", "lets go of a request that is refused"),
        (
            S + "layers.layer_boundary.residual.stream.ResidualStream.complete",
            "sums a layer's contribution over the ranks; its addition stays pending",
        ),
        (
            TOKENIZER + "_stream_one_response",
            "one answer without stream; chunks with it, whose completion_tokens and output_ids agree when it yields",
        ),
        (
            S + "speculative.eagle_worker_common.run_eagle_verify",
            "calls eagle_sample once behind the target's forward; what follows reads the three tensors it returns",
        ),
        (
            S + "speculative.ngram_worker.NGRAMWorker.forward_batch_generation",
            "the same for NGRAM; a prefill goes through the sampler",
        ),
        (S + "speculative.eagle_info.EagleVerifyInput", "nodes, links and positions of the draft trees"),
        (S + "speculative.ngram_info.NgramVerifyInput", "the same"),
        ("sglang.kernels.ops.speculative.spec_tree.verify_tree_greedy_func", "walks each tree along given tokens"),
        (S + "layers.sampler.Sampler._sample_from_logprobs", "replaced: seeded rows under --rl-on-policy-target"),
        (S + "layers.logits_processor.SamplingMaskOutput", "written over for rows that LED decided"),
        (S + "layers.sampler.Sampler._build_greedy_sampling_mask_output", "makes it, one token wide"),
        (
            S + "layers.sampler.Sampler._build_sampling_mask_output",
            "makes it: likeliest first, over the support's mass",
        ),
        (
            S + "sampling.sampling_batch_info.SamplingBatchInfo._make_sampling_support_logprobs_capture_indices",
            "which rows of it have logprobs of the whole support",
        ),
    )
}
