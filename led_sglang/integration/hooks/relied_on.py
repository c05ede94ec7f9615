"""What we call, read or wrap in SGLang beside the hooks, and rely on, as data: imports nothing but the hooks table."""

from led_sglang.integration.hooks.table import BATCH_INFO, TOKENIZER, S

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
