"""Several processes, ranks and stages: which arrangements LED works in. Asked before weights are loaded, and again with
the model.
"""

import os
from typing import Any

from sglang.srt.distributed import get_pp_indices

from led_sglang.config.methods import captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.release_support import refuse_release
from led_sglang.integration.soft_support import is_soft_enabled
from led_sglang.wire import HANDOFF_SPACE

ENV_APP = "SGLANG_HTTP_SERVER_APP_PATH"  # what several tokenizer workers import, and one process does not
WORKER_APP = "led_sglang.integration.http.workers.app:app"


def refuse_topology(config: ServerConfig, args: Any) -> None:
    """Raises CaptureError; args: resolved server arguments, as `support.in_effect` gives them."""
    _refuse_workers(args)
    _refuse_dp_attention(config, args)
    _refuse_pipeline(config, args)
    _refuse_disaggregation(config, args)


def _refuse_workers(args: Any) -> None:
    num_workers, app = getattr(args, "tokenizer_worker_num", 1), os.environ.get(ENV_APP, WORKER_APP)
    if num_workers == 1:
        return
    refuse_release(f"--tokenizer-worker-num {num_workers}")
    if getattr(args, "api_key", None):
        raise CaptureError(
            f"SGLang does not serve --tokenizer-worker-num {num_workers} with --api-key: each worker would end at its "
            f"start. Leave one of the two out, or let the gateway before the server ask for the key"
        )
    if app != WORKER_APP:
        raise CaptureError(
            f"LED does not work with --tokenizer-worker-num {num_workers} and {ENV_APP}={app}: requests of that app do "
            f"not pass the functions that read their LED parameters. Unset the variable or start with --led disabled"
        )


def _refuse_dp_attention(config: ServerConfig, args: Any) -> None:
    """Both spellings: SGLang resolves --enable-dp-attention --dp-size N into --attn-dp-size N."""
    size = getattr(args, "attn_dp_size", 1)
    if size == 1:
        return
    flag = f"--attn-dp-size {size}"
    refuse_release(flag)
    if not args.enable_dp_lm_head:
        raise CaptureError(
            f"LED does not work with {flag} without --enable-dp-lm-head: the LM head would be cut over all ranks, and "
            f"a batch's rows live on those of one data-parallel rank. Add the flag, which costs each of these its own "
            f"copy of the head, or start with --led disabled"
        )
    _refuse_untried(flag, config, args)


def _refuse_pipeline(config: ServerConfig, args: Any) -> None:
    """The last stage samples, and captures what its own layers give."""
    num_stages, layers = getattr(args, "pp_size", 1), captured_layers(config)
    if num_stages == 1:
        return
    flag = f"--pp-size {num_stages}"
    refuse_release(flag)
    _refuse_untried(flag, config, args)
    if config.num_layers is None or not layers:
        return
    first, last = get_pp_indices(config.num_layers, num_stages - 1, num_stages)  # 0-based
    num_there = last - first - 1  # outputs before the final one
    if min(layers) > first:
        return
    num_last = last - min(layers) + 1
    before = config.num_layers - num_last
    shares = [before // (num_stages - 1) + (i < before % (num_stages - 1)) for i in range(num_stages - 1)]
    partition = ",".join(map(str, [*shares, num_last]))
    way_out = f"--led-max-depth {max(1, num_there)}" if config.methods == ("led",) else "methods with fewer layers"
    if all(shares):
        way_out += f" or SGLANG_PP_LAYER_PARTITION={partition}"
    raise CaptureError(
        f"LED does not work with {flag} and layers {min(layers)} to {max(layers)} captured: the last stage has layers "
        f"{first + 1} to {last}, of which it can use {num_there}. Use {way_out}, or start with --led disabled"
    )


def _refuse_disaggregation(config: ServerConfig, args: Any) -> None:
    """The first token's record travels from a prefill server to a decode server in a row of a constant width."""
    mode = getattr(args, "disaggregation_mode", "null")
    if mode == "null":
        return
    flag = f"--disaggregation-mode {mode}"
    refuse_release(flag)
    _refuse_untried(flag, config, args)
    largest = HANDOFF_SPACE - config.max_depth
    if 3 * config.max_top_k > largest:
        raise CaptureError(
            f"LED does not work with {flag} and --led-max-top-k {config.max_top_k}: the trace of a request's first "
            f"token travels between the servers, and a row has room for {largest // 3} candidates. Use "
            f"--led-max-top-k {largest // 3} at most, or start with --led disabled"
        )


def _refuse_untried(flag: str, config: ServerConfig, args: Any) -> None:
    """Combinations that no test has shown."""
    algorithm, num_stages = getattr(args, "speculative_algorithm", None), getattr(args, "pp_size", 1)
    attn_dp_size = getattr(args, "attn_dp_size", 1)
    others = {
        f"--speculative-algorithm {algorithm}": bool(algorithm),
        f"--pp-size {num_stages}": num_stages > 1,
        f"--attn-dp-size {attn_dp_size}": attn_dp_size > 1,
        "soft_thinking in --led-methods": is_soft_enabled(config),
    }
    for other, is_there in others.items():
        if is_there and other != flag:
            raise CaptureError(
                f"LED does not work with {flag} and {other}: no test has shown it. Leave one of them out, or start "
                f"with --led disabled"
            )
