"""Can this model be served with LED? Answered before any weight is loaded."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from led_sglang.integration.capture import CaptureError
from led_sglang.markers import find_markers, with_markers
from led_sglang.params import ServerConfig

INNER_CAPTURE = ("MiMoForCausalLM",)  # outer class without the setter, inner model with `layers_to_capture`


def resolve(config: ServerConfig, server_args: Any) -> ServerConfig:
    """`config` completed with the model's layers, vocabulary and markers. Raises LedParamError or CaptureError."""
    from sglang.srt.configs.model_config import ModelConfig

    _refuse_features(server_args)
    model_config = ModelConfig.from_server_args(server_args)
    _refuse_uncapturable(config, model_config)
    resolved = replace(config, num_layers=int(model_config.num_hidden_layers), vocab_size=int(model_config.vocab_size))
    resolved.check()
    return with_markers(resolved, find_markers(_tokenizer(server_args), resolved, _parser_markers(server_args)))


def _refuse_features(server_args: Any) -> None:
    if getattr(server_args, "speculative_algorithm", None):
        raise CaptureError(
            "LED does not work with speculative decoding, which bypasses the sampler: drop --speculative-algorithm or "
            "start with --led disabled"
        )
    for name, flag in (
        ("pp_size", "--pp-size"),
        ("tokenizer_worker_num", "--tokenizer-worker-num"),
    ):
        if (getattr(server_args, name, 1) or 1) > 1:
            raise CaptureError(f"LED does not work with {flag} {getattr(server_args, name)}: use 1 or --led disabled")
    for name, flag in (
        ("enable_dp_attention", "--enable-dp-attention"),
        ("skip_tokenizer_init", "--skip-tokenizer-init"),
        ("enable_dp_lm_head", "--enable-dp-lm-head"),
        ("smg_grpc_mode", "--smg-grpc-mode"),
        ("grpc_mode", "--grpc-mode"),
        ("use_ray", "--use-ray"),
        ("encoder_only", "--encoder-only"),
    ):
        if getattr(server_args, name, False):
            raise CaptureError(f"LED does not work with {flag} yet: drop it or start with --led disabled")


def _refuse_uncapturable(config: ServerConfig, model_config: Any) -> None:
    model_class, name = _model_class(model_config.hf_config.architectures or [])
    if config.max_depth > 1 and not hasattr(model_class, "set_eagle3_layers_to_capture") and name not in INNER_CAPTURE:
        raise CaptureError(
            f"LED cannot capture the layers of {name}: SGLang's class has no set_eagle3_layers_to_capture. Supported "
            f"models are listed in docs/compat.md; start with --led-max-depth 1 --led-depth 1 or --led disabled"
        )


def _model_class(architectures: list[str]) -> tuple[Any, str]:
    """SGLang's class for the model. Its registry imports every model file, which takes seconds; one is enough."""
    import sglang.srt.models

    folder = Path(sglang.srt.models.__path__[0])
    for name in architectures:
        for file in folder.glob("*.py"):
            if f"class {name}(" in file.read_text():
                return getattr(import_module(f"sglang.srt.models.{file.stem}"), name), name
    from sglang.srt.models.registry import ModelRegistry

    found: tuple[Any, str] = ModelRegistry.resolve_model_cls(architectures)
    return found


def _tokenizer(server_args: Any) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(
        server_args.tokenizer_path or server_args.model_path,
        tokenizer_mode=server_args.tokenizer_mode,
        trust_remote_code=server_args.trust_remote_code,
        revision=server_args.revision,
    )


def _parser_markers(server_args: Any) -> tuple[str, str] | None:
    name = getattr(server_args, "reasoning_parser", None)
    if not name:
        return None
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    detector = ReasoningParser(name, stream_reasoning=False).detector
    return detector.think_start_token, detector.think_end_token
