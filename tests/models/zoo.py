"""Tiny sharp float32 checkpoints, one of each architecture that the CPU platform can serve.

Twelve layers, of which eight are captured: with ten the first captured layer is the one at which SGLang's own setter
for DeepSeek happens to be right.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from led_sglang.embedded import MODEL_DIR
from tests.server.checkpoints import COMMON, EMBEDDING_SCALE, HEAD_SCALE, NUM_LAYERS

MAX_DEPTH = 8
GRANITE = {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GEMMA = {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}


@dataclass(frozen=True)
class Entry:
    """A row of the matrix: what SGLang serves, and the transformers configuration that computes the same."""

    family: str  # as people name the models
    served_as: str  # in `architectures` of config.json
    ending: str  # of its layers, as `latents.decoder` names them
    config: Callable[[], PretrainedConfig]
    serves: str = ""  # SGLang's class, where it is another
    changes: dict[str, Any] = field(default_factory=dict)  # in the config.json that SGLang reads
    dropped: tuple[str, ...] = ()  # from it
    is_quick: bool = False  # in `make test`
    head: str = "as it is"
    is_final_same: bool = True  # SGLang's final logits are transformers'

    @property
    def model_class(self) -> str:
        return self.serves or self.served_as


def configured(name: str, **more: Any) -> Callable[[], PretrainedConfig]:
    return lambda: getattr(transformers, name)(**COMMON | more)


ENTRIES: dict[str, Entry] = {
    "qwen3": Entry("Qwen3", "Qwen3ForCausalLM", "stream", configured("Qwen3Config", head_dim=32), is_quick=True),
    "glm4": Entry("GLM-4-0414, GLM-Z1", "Glm4ForCausalLM", "stream", configured("Glm4Config", head_dim=32)),
    "glm4_moe": Entry(
        "GLM-4.5, 4.6, 4.7",
        "Glm4MoeForCausalLM",
        "stream",
        configured(
            "Glm4MoeConfig",
            **SMALL_EXPERTS,
            head_dim=32,
            n_routed_experts=4,
            n_shared_experts=1,
            first_k_dense_replace=1,
            use_qk_norm=True,
            routed_scaling_factor=1.5,
            attention_bias=True,
        ),
    ),
    "gemma3": Entry(
        "Gemma 3", "Gemma3ForCausalLM", "sum", configured("Gemma3TextConfig", **GEMMA), head="tied", is_quick=True
    ),
    "gemma2": Entry(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "sum",
        configured("Gemma2Config", **GEMMA, final_logit_softcapping=30.0, attn_logit_softcapping=None),
        changes={"hidden_act": "gelu_pytorch_tanh"},
        head="tied, soft cap",
    ),
    "phi3": Entry("Phi-3, Phi-4-reasoning", "Phi3ForCausalLM", "stream", configured("Phi3Config")),
    "olmo2": Entry("OLMo 2", "Olmo2ForCausalLM", "first", configured("Olmo2Config"), is_quick=True),
    "olmo3": Entry(
        "OLMo 3 Think",
        "Olmo3ForCausalLM",
        "first",
        configured("Olmo3Config", sliding_window=64),
        serves="Olmo2ForCausalLM",
        changes={"rope_theta": 500000.0},
        dropped=("rope_parameters",),
    ),
    "mistral": Entry(
        "Mistral", "MistralForCausalLM", "stream", configured("MistralConfig", sliding_window=None, head_dim=32)
    ),
    "ministral3": Entry("Ministral 3", "Ministral3ForCausalLM", "stream", configured("Ministral3Config", head_dim=32)),
    "granite": Entry(
        "Granite 3",
        "GraniteForCausalLM",
        "sum",
        configured("GraniteConfig", **GRANITE),
        head="scaled",
        is_quick=True,
    ),
    "granitemoe": Entry(
        "Granite 3 MoE",
        "GraniteMoeForCausalLM",
        "first",
        configured("GraniteMoeConfig", **GRANITE | EXPERTS | {"intermediate_size": 64}),
        head="scaled",
    ),
    "granitemoehybrid": Entry(
        "Granite 4 (attention layers)",
        "GraniteMoeHybridForCausalLM",
        "stream",
        configured(
            "GraniteMoeHybridConfig",
            **GRANITE,
            layer_types=["attention"] * NUM_LAYERS,
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=128,
            position_embedding_type="rope",
            mamba_n_heads=4,
            mamba_d_head=64,
            mamba_d_state=16,
        ),
        head="scaled",
    ),
    "smollm3": Entry(
        "SmolLM3",
        "SmolLM3ForCausalLM",
        "first",
        configured("SmolLM3Config"),
        serves="TransformersForCausalLM",
        is_quick=True,
    ),
    "seed_oss": Entry(
        "Seed-OSS",
        "SeedOssForCausalLM",
        "first",
        configured("SeedOssConfig", head_dim=32, attention_dropout=0.0, residual_dropout=0.0),
        serves="TransformersForCausalLM",
    ),
    "ernie4_5": Entry("ERNIE 4.5", "Ernie4_5_ForCausalLM", "sum", configured("Ernie4_5Config", head_dim=32)),
    "arcee": Entry("Arcee", "ArceeForCausalLM", "stream", configured("ArceeConfig", head_dim=32)),
    "mixtral": Entry(
        "Mixtral", "MixtralForCausalLM", "stream", configured("MixtralConfig", **EXPERTS, sliding_window=None)
    ),
    "cohere2": Entry(
        "Command A",
        "Cohere2ForCausalLM",
        "first",
        configured("Cohere2Config", tie_word_embeddings=True, head_dim=32, sliding_window=64, logit_scale=0.25),
        head="tied, scaled",
        is_quick=True,
    ),
    "stablelm": Entry("StableLM", "StableLmForCausalLM", "first", configured("StableLmConfig")),
    "starcoder2": Entry(
        "StarCoder 2", "Starcoder2ForCausalLM", "first", configured("Starcoder2Config", sliding_window=None)
    ),
    "phimoe": Entry(
        "Phi-3.5-MoE",
        "PhiMoEForCausalLM",
        "first",
        configured("PhimoeConfig", **EXPERTS, lm_head_bias=True, attention_bias=True, sliding_window=None),
        head="a bias that the engine leaves out",
        is_final_same=False,
    ),
    "gpt2": Entry(
        "GPT-2",
        "GPT2LMHeadModel",
        "first",
        configured(
            "GPT2Config",
            n_embd=128,
            n_layer=NUM_LAYERS,
            n_head=4,
            num_key_value_heads=4,
            n_positions=2048,
            tie_word_embeddings=True,
        ),
        head="tied",
    ),
}


def build(name: str, folder: Path, seed: int = 20260201) -> Path:
    """Write the checkpoint of a row and return its folder; the same weights for the same seed."""
    entry = ENTRIES[name]
    torch.manual_seed(seed)
    config = entry.config()
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    sharpen(model)
    model.save_pretrained(folder)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    (folder / "transformers").mkdir()
    (folder / "transformers" / "config.json").write_text(json.dumps(document))
    document = {key: value for key, value in document.items() if key not in entry.dropped}
    path.write_text(json.dumps(document | {"architectures": [entry.served_as]} | entry.changes, indent=2))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / file, folder / file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """As `tests.server.checkpoints` does: no two layers agree, and none is certain or uniform."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.normal_(0.0, 0.05)
        elif weight.dim() == 1:
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(0.0, 0.05)
    if embedding.data_ptr() != head.data_ptr():
        embedding.mul_(EMBEDDING_SCALE)
    head.mul_(HEAD_SCALE)


def load(folder: Path) -> PreTrainedModel:
    """The checkpoint in float64, as transformers computes it."""
    config = transformers.AutoConfig.from_pretrained(folder / "transformers")
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64)
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()
