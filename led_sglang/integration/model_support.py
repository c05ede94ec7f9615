"""Which models have a layer's output to capture. Asked before weights are loaded; `latents` asks the loaded model."""

from typing import TYPE_CHECKING, Any

from led_sglang.config.methods import captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig

STREAMS = "its residual stream has several branches, of which none is the layer's output"
LOOPED = "it runs its layers several times, so that a layer has several outputs"
DIFFUSION = "it does not decode from left to right"
NO_LAYER_OUTPUT: dict[str, str] = {  # SGLang's classes
    **dict.fromkeys(("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"), STREAMS),
    **dict.fromkeys(("DeepseekV4ForCausalLM", "HYV4ForCausalLM", "Qwen4ExpForConditionalGeneration"), STREAMS),
    **dict.fromkeys(("MuseSparkForConditionalGeneration", "MuseSparkTextForCausalLM"), STREAMS),
    **dict.fromkeys(
        ("KimiK3LinearForCausalLM", "KimiK3ForConditionalGeneration"),
        "its layers write into a bank of outputs that the next layer mixes",
    ),
    **dict.fromkeys(
        ("Grok1ForCausalLM", "Grok1ModelForCausalLM"), "its next layer norms a layer's output before it is added"
    ),
    "InklingForConditionalGeneration": "a convolution follows the sum of a layer's output",
    "ZayaForCausalLM": "its next layer merges a layer's output by weights of its own",
    **dict.fromkeys(("HrmTextForCausalLM", "IQuestLoopCoderForCausalLM", "NanbeigeForCausalLM"), LOOPED),
    **dict.fromkeys(
        ("DiffusionGemmaForBlockDiffusion", "LLaDA2MoeModelLM", "SDARForCausalLM", "SDARMoeForCausalLM"), DIFFUSION
    ),
    "MindSporeForCausalLM": "its layers are no PyTorch modules",
}
STREAMS_BY_CONFIG = {"Glm5NextForConditionalGeneration": "mhc"}  # where this of the configuration is set


def refuse_model(config: ServerConfig, model_config: "ModelConfig", args: Any) -> None:
    """Raises CaptureError where layers are captured and the model has no output of a layer, or would lose it.

    args: resolved server arguments, as `support.in_effect` gives them.
    """
    if not captured_layers(config):
        return
    for name in model_config.hf_config.architectures or []:
        setting = STREAMS_BY_CONFIG.get(name)
        has_streams = setting is not None and getattr(model_config.hf_text_config, setting, None)
        reason = STREAMS if has_streams else NO_LAYER_OUTPUT.get(name)
        if reason is not None:
            raise CaptureError(
                f"LED cannot use the layers of {name}: {reason}. Start with --led-max-depth 1 --led-depth 1 and no "
                f"method that captures layers, or with --led disabled"
            )
    prefill = getattr(getattr(args, "cuda_graph_config", None), "prefill", None)
    if getattr(prefill, "backend", None) == "tc_piecewise":
        raise CaptureError(
            "LED does not work with --cuda-graph-backend-prefill tc_piecewise: nothing has shown that a compiled "
            "forward keeps layer outputs. Use breakable, or start with --led disabled"
        )
