"""Can this model be served with LED, and these arguments by SGLang? Answered before any weight is loaded."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.environ import envs

from led_sglang.config.checks import LedParamError
from led_sglang.config.markers import find_markers, with_markers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.model_support import refuse_model
from led_sglang.integration.release_support import refuse_release
from led_sglang.integration.soft_support import refuse_soft
from led_sglang.integration.speculative_support import refuse_speculation
from led_sglang.integration.thinking.parser_markers import parser_markers
from led_sglang.integration.thinking.token_texts import token_texts
from led_sglang.integration.topology_support import refuse_topology

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

HIDES_ROWS = "the rows of the forward are not those of the sampler"
HIDES_REQUESTS = "requests do not pass the functions that read their LED parameters"
KEEPS_LAYERS = "the forward keeps no layer outputs"
REPLAYS = "it runs forwards of rows that are not sampled"
RANKS_CHANGE = "LED's noise and counters need the ranks to stay the same"
# Fields of ServerArgs that cannot go with LED where they are set: the flag, and why.
UNSUPPORTED: dict[str, tuple[str, str]] = {
    "enable_watermark": ("--enable-watermark", "it forces the token before the sampler sees it"),
    "watermark_config": ("--watermark-config", "it forces the token before the sampler sees it"),
    "enable_return_aux_hidden_states": (
        "--enable-return-aux-hidden-states",
        "it asks the model for layer outputs of its own",
    ),
    "return_aux_hidden_state_layer_ids": (
        "--return-aux-hidden-state-layer-ids",
        "it asks the model for layer outputs of its own",
    ),
    "enable_layernorm_sp": ("--enable-layernorm-sp", HIDES_ROWS),
    "enable_attn_tp_input_scattered": ("--enable-attn-tp-input-scattered", HIDES_ROWS),
    "attn_cp_size": ("--attn-cp-size", HIDES_ROWS),
    "enable_prefill_cp": ("--enable-prefill-cp", HIDES_ROWS),
    "moe_a2a_backend": ("--moe-a2a-backend", HIDES_ROWS),
    "enable_encoder_swa_bounded_replay": ("--enable-encoder-swa-bounded-replay", REPLAYS),
    "enable_decoder_swa_bounded_replay": ("--enable-decoder-swa-bounded-replay", REPLAYS),
    "enable_nvidia_megakernel": ("--enable-nvidia-megakernel", KEEPS_LAYERS),
    "enable_amd_monokernel": ("--enable-amd-monokernel", KEEPS_LAYERS),
    "enable_two_batch_overlap": ("--enable-two-batch-overlap", KEEPS_LAYERS),
    "enable_pdmux": ("--enable-pdmux", KEEPS_LAYERS),
    "enable_torch_compile": ("--enable-torch-compile", "nothing has shown that a compiled forward keeps layer outputs"),
    "enable_pd_role_switch": (
        "--enable-pd-role-switch",
        "a server's requests would begin in another step than they do where it started",
    ),
    "smg_grpc_mode": ("--smg-grpc-mode", HIDES_REQUESTS),
    "grpc_mode": ("--grpc-mode", HIDES_REQUESTS),
    "use_ray": ("--use-ray", HIDES_REQUESTS),
    "grpc_port": (
        "--grpc-port",
        "its messages have no field for LED's parameters, and its OpenAI answers none for what LED did",
    ),
    "encoder_only": ("--encoder-only", "it serves no text"),
    "is_embedding": ("--is-embedding", "it serves no text"),
    "dllm_algorithm": ("--dllm-algorithm", "a diffusion model's tokens do not come from the sampler"),
    "decoupled_spec_role": (
        "--decoupled-spec-role",
        "the drafts are verified in another process than they are made",
    ),
    "mlx_enable_sampling": ("--mlx-enable-sampling", "MLX samples inside its own graph"),
    "elastic_ep_backend": ("--elastic-ep-backend", RANKS_CHANGE),
    "ep_join_mode": ("--elastic-ep-join-mode", RANKS_CHANGE),
}
UNSET: dict[str, object] = {  # values beside None, False and 0 that ask for nothing
    "attn_cp_size": 1,
    "decoupled_spec_role": "null",
    **dict.fromkeys(("moe_a2a_backend", "elastic_ep_backend"), "none"),
}


class EngineRefusal(RuntimeError):
    """SGLang would not start with these arguments; the message is its own."""


def accept(server_args: "ServerArgs") -> Any:
    """All that SGLang decides before it loads weights, as a copy of the arguments; they themselves are resolved only.

    Raises EngineRefusal where SGLang would refuse to start: it checks some arguments as late as in its launch.
    """
    from sglang.srt.parser.template_detection import resolve_auto_parsers

    with _engine_refusals():
        if hasattr(server_args, "resolve_once"):
            server_args.resolve_once()
        # A copy: where the launch checks the same object again it does not understand what a first check left.
        decided = copy.deepcopy(server_args)
        decided.check_server_args()
        resolve_auto_parsers(decided)
    return decided


@contextmanager
def _engine_refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, AssertionError, RuntimeError, OSError) as error:  # a RuntimeError: no GPU is there
        raise EngineRefusal(f"SGLang refuses the arguments: {str(error) or type(error).__name__}") from error


def resolve(config: ServerConfig, server_args: "ServerArgs") -> ServerConfig:
    """`config` completed with the model's layers, vocabulary and markers; the arguments are resolved by it.

    Raises LedParamError, CaptureError or EngineRefusal for whatever a start would stop at before the weights are there.
    """
    from sglang.srt.configs.model_config import ModelConfig

    refuse_features(server_args)
    refuse_speculation(config, server_args)
    decided = accept(server_args)
    refuse_features(decided)
    view = in_effect(decided)
    _refuse_lora_head(view)
    with _engine_refusals():
        model_config = ModelConfig.from_server_args(decided)
        tokenizer = tokenizer_of(view)
    resolved = replace(config, num_layers=int(model_config.num_hidden_layers), vocab_size=int(model_config.vocab_size))
    resolved.check()
    refuse_model(resolved, model_config, view)
    _refuse_backend(resolved, view)
    _refuse_one_pass(resolved, view, model_config.hf_text_config)
    if resolved.head_lse != "full":
        refuse_release(f"--led-head-lse {resolved.head_lse}")
    vocab_size = resolved.vocab_size
    markers = find_markers(
        tokenizer, resolved, parser_markers(view, tokenizer), lambda: token_texts(tokenizer, vocab_size)
    )
    resolved = with_markers(resolved, markers)
    refuse_soft(resolved, view)
    refuse_topology(resolved, view)
    refuse_speculation(resolved, view)
    return resolved


def in_effect(server_args: "ServerArgs") -> Any:
    """The arguments as SGLang decided them, to read from: 0.5.23 leaves the fields as they were said."""
    try:
        from sglang.srt.arg_groups.overrides import resolving_view
    except ImportError:  # SGLang 0.5.17 writes into the fields
        return server_args
    return resolving_view(server_args)


def refuse_features(server_args: "ServerArgs") -> None:
    """Raises CaptureError for what cannot go with LED, whether the user said it or SGLang decided it."""
    for args in (server_args, in_effect(server_args)):
        _refuse_features(args)
    rust_server = getattr(envs, "SGLANG_RUST_SERVER", None)  # not in 0.5.17
    if rust_server is not None and rust_server.get():
        raise CaptureError(
            f"LED does not work with SGLANG_RUST_SERVER: {HIDES_REQUESTS}. Unset it or start with --led disabled"
        )


def _refuse_features(args: Any) -> None:
    for name, (flag, why) in UNSUPPORTED.items():
        value = getattr(args, name, None)
        if not value or value == UNSET.get(name):
            continue
        forbidden = flag if value is True else f"{flag} {value}"
        raise CaptureError(f"LED does not work with {forbidden}: {why}. Drop it or start with --led disabled")


def _refuse_lora_head(args: Any) -> None:
    """Of the loaded model `latents.lm_head` says it; of an adapter that is not here yet, that alone does."""
    if not getattr(args, "enable_lora", None):
        return
    from sglang.srt.lora.utils import get_normalized_target_modules

    requested = {"--lora-target-modules": args.lora_target_modules}
    for adapter in () if args.lora_target_modules else args.lora_paths or ():
        file = Path(adapter.lora_path) / "adapter_config.json"
        modules = json.loads(file.read_text())["target_modules"] if file.is_file() else None
        requested[f"the adapter {adapter.lora_name!r}"] = modules if isinstance(modules, list) else None
    for where, modules in requested.items():
        for module in modules or ():
            if get_normalized_target_modules([module]) & {"lm_head", "all"}:
                raise CaptureError(
                    f"LED does not work with {module!r} in {where}: the rows of a batch would have LM heads of their "
                    f"own, which latent rows cannot say. Leave the LM head out or start with --led disabled"
                )


def _refuse_backend(config: ServerConfig, args: Any) -> None:
    """Every step would fail, and the engine's tokens would be used."""
    if config.backend == "triton" and args.device == "cpu" and not _can_triton_run_on_cpu():
        raise LedParamError('--led-backend triton needs a GPU, this server runs on cpu: use "auto"')
    if config.backend in ("numba", "compiled") and args.device != "cpu":
        raise LedParamError(
            f'--led-backend {config.backend} is for the CPU, this server runs on {args.device}: use "auto"'
        )
    if config.backend == "reference" and args.tp_size > 1:
        raise LedParamError(f'--led-backend reference needs --tp-size 1, got {args.tp_size}: use "auto"')


def _can_triton_run_on_cpu() -> bool:
    try:
        from led_sglang.ops.backends.triton import TritonBackend
    except ImportError:
        return False
    import torch

    return TritonBackend.runs_on(torch.device("cpu"))


def _refuse_one_pass(config: ServerConfig, args: Any, text_config: Any) -> None:
    """Where the engine multiplies with the head in its own way; of the head itself `Runtime.bind_head` says it."""
    engine_switches = {
        "--enable-fp32-lm-head": getattr(args, "enable_fp32_lm_head", False),
        "--rl-on-policy-target": getattr(args, "rl_on_policy_target", None),
        "enable_lm_head_fp32 in the model's configuration": getattr(text_config, "enable_lm_head_fp32", False),
    }
    for name, is_set in engine_switches.items():
        if config.form == "one_pass" and is_set:
            raise LedParamError(f"--led-form one_pass is not possible with {name}: use auto")


def tokenizer_of(server_args: "ServerArgs") -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(
        server_args.tokenizer_path or server_args.model_path,
        tokenizer_mode=server_args.tokenizer_mode,
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.revision,
    )
