"""Tiny sharp float32 checkpoints, one of each architecture that the CPU platform serves, with `torch_kernels` or not.

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

LATENT = {
    "kv_lora_rank": 64,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
LINEAR = {  # three value heads a key head: others take a kernel that a CPU has not
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
PLAIN = ("--attention-backend", "triton")  # `torch_kernels.PlainAttention`
STATES = (*PLAIN, "--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule", "--disable-radix-cache")
HALF_BLOCKS = ["mamba", "mlp", "attention"] * (NUM_LAYERS // 3)


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
    arguments: tuple[str, ...] = ()  # of the server
    parsers: tuple[str, ...] = ()  # SGLang's reasoning parsers for the models that people serve
    has_ranks: bool = False  # in the matrix with two ranks too
    has_kernels: bool = False  # of SGLang for GPUs alone, beside its attention: `torch_kernels` has them
    is_quick: bool = False  # runs without --full
    head: str = "as it is"
    is_final_same: bool = True  # SGLang's final logits are transformers'

    @property
    def model_class(self) -> str:
        return self.serves or self.served_as

    @property
    def has_stand_ins(self) -> bool:
        """The CPU platform does not run it alone: `torch_kernels` computes its attention, or other parts."""
        return bool(self.arguments) or self.has_kernels


def configured(name: str, **more: Any) -> Callable[[], PretrainedConfig]:
    return lambda: getattr(transformers, name)(**COMMON | more)


ENTRIES: dict[str, Entry] = {
    "qwen3": Entry(
        "Qwen3",
        "Qwen3ForCausalLM",
        "stream",
        configured("Qwen3Config", head_dim=32),
        is_quick=True,
        parsers=("qwen3",),
        has_ranks=True,
    ),
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
        parsers=("glm45",),
    ),
    "gemma3": Entry(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "sum",
        configured("Gemma3TextConfig", **GEMMA),
        head="tied",
        is_quick=True,
        has_ranks=True,
    ),
    "gemma2": Entry(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "sum",
        configured("Gemma2Config", **GEMMA, final_logit_softcapping=30.0, attn_logit_softcapping=None),
        changes={"hidden_act": "gelu_pytorch_tanh"},
        head="tied, soft cap",
        has_kernels=True,
    ),
    "phi3": Entry("Phi-3, Phi-4-reasoning", "Phi3ForCausalLM", "stream", configured("Phi3Config"), parsers=("qwen3",)),
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
        "Mistral",
        "MistralForCausalLM",
        "stream",
        configured("MistralConfig", sliding_window=None, head_dim=32),
        parsers=("mistral",),
    ),
    "ministral3": Entry(
        "Ministral 3",
        "Ministral3ForCausalLM",
        "stream",
        configured("Ministral3Config", head_dim=32),
        parsers=("mistral",),
    ),
    "granite": Entry(
        "Granite 3",
        "GraniteForCausalLM",
        "sum",
        configured("GraniteConfig", **GRANITE),
        head="scaled",
        is_quick=True,
        parsers=("granite_thinking_parser",),
        has_ranks=True,
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
        parsers=("granite_thinking_parser",),
    ),
    "smollm3": Entry(
        "SmolLM3",
        "SmolLM3ForCausalLM",
        "first",
        configured("SmolLM3Config"),
        serves="TransformersForCausalLM",
        is_quick=True,
        has_ranks=True,
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
        parsers=("cohere_command4",),
        has_ranks=True,
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

ENTRIES |= {  # what `torch_kernels` and `recurrent` compute parts of
    "deepseek_v3": Entry(
        "DeepSeek V3, R1, V3.1; Kimi K2",
        "DeepseekV3ForCausalLM",
        "stream",
        configured("DeepseekV3Config", **LATENT | SMALL_EXPERTS, first_k_dense_replace=1, n_group=1, topk_group=1),
        changes={"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        arguments=PLAIN,
        parsers=(
            "deepseek-r1",
            "deepseek-v3",
            "kimi_k2",
        ),
        is_quick=True,
        has_ranks=True,
    ),
    "deepseek_v2": Entry(
        "DeepSeek V2",
        "DeepseekV2ForCausalLM",
        "stream",
        configured("DeepseekV2Config", **LATENT | SMALL_EXPERTS, first_k_dense_replace=1, n_group=1, topk_group=1),
        changes={"moe_layer_freq": 1, "scoring_func": "softmax", "topk_method": "greedy"},
        arguments=PLAIN,
    ),
    "glm4_moe_lite": Entry(
        "GLM-4.7-Flash",
        "Glm4MoeLiteForCausalLM",
        "stream",
        configured("Glm4MoeLiteConfig", **LATENT | SMALL_EXPERTS),
        changes={"first_k_dense_replace": 1, "moe_layer_freq": 1},
        arguments=PLAIN,
        parsers=("glm45",),
    ),
    "minimax_m2": Entry(
        "MiniMax-M2",
        "MiniMaxM2ForCausalLM",
        "stream",
        configured("MiniMaxM2Config", **EXPERTS, head_dim=32),
        changes={"scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True, "rotary_dim": 32},
        arguments=PLAIN,
        parsers=("minimax-append-think",),
    ),
    "qwen2_moe": Entry(
        "Qwen1.5-MoE, Qwen2-MoE",
        "Qwen2MoeForCausalLM",
        "stream",
        configured("Qwen2MoeConfig", **SMALL_EXPERTS, num_experts=4, shared_expert_intermediate_size=64),
        has_kernels=True,
    ),
    "olmoe": Entry(
        "OLMoE",
        "OlmoeForCausalLM",
        "sum",
        configured("OlmoeConfig", num_key_value_heads=4, num_experts=4, num_experts_per_tok=2),
    ),
    "gemma4": Entry(
        "Gemma 4 (dense, no per-layer inputs)",
        "Gemma4ForCausalLM",
        "stream",
        configured(
            "Gemma4TextConfig",
            tie_word_embeddings=True,
            head_dim=32,
            global_head_dim=32,
            sliding_window=64,
            hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=COMMON["vocab_size"],
            final_logit_softcapping=30.0,
        ),
        changes={"swa_num_key_value_heads": 2, "swa_head_dim": 32},
        arguments=PLAIN,
        head="tied, soft cap",
        parsers=("gemma4",),
    ),
    "nemotron_h": Entry(
        "Nemotron-H (without experts)",
        "NemotronHForCausalLM",
        "stream",
        lambda: transformers.NemotronHConfig(
            **{key: value for key, value in COMMON.items() if key != "num_hidden_layers"},
            head_dim=32,
            layers_block_type=HALF_BLOCKS,
            mamba_num_heads=4,
            mamba_head_dim=64,
            ssm_state_size=16,
            n_groups=1,
        ),
        changes={
            "layers_block_type": HALF_BLOCKS,
            "hybrid_override_pattern": "M-*" * (NUM_LAYERS // 3),
            "mamba_n_groups": 1,
        },
        dropped=("layer_types",),
        arguments=STATES,
        parsers=("nemotron_3",),
        is_quick=True,
        has_ranks=True,
    ),
    "gpt_oss": Entry(
        "gpt-oss",
        "GptOssForCausalLM",
        "stream",
        configured(
            "GptOssConfig",
            **EXPERTS | {"intermediate_size": 128},
            head_dim=32,
            sliding_window=4,  # the start's prompts are longer
            rope_parameters={"rope_theta": 150000.0} | YARN,
        ),
        arguments=(*PLAIN, "--moe-runner-backend", "triton"),
        parsers=("gpt-oss",),
    ),
    "qwen3_next": Entry(
        "Qwen3-Next",
        "Qwen3NextForCausalLM",
        "stream",
        configured(
            "Qwen3NextConfig", **SMALL_EXPERTS | LINEAR, head_dim=32, num_experts=4, shared_expert_intermediate_size=64
        ),
        changes={"full_attention_interval": 4},
        arguments=STATES,
        parsers=("qwen3-thinking",),
    ),
    "qwen3_5": Entry(
        "Qwen3.5, 3.6 (dense)",
        "Qwen3_5ForCausalLM",
        "stream",
        configured("Qwen3_5TextConfig", **LINEAR, head_dim=32),
        changes={"full_attention_interval": 4},
        arguments=STATES,
        parsers=("qwen3",),
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
    (folder / "transformers").mkdir()
    shutil.copy(folder / "config.json", folder / "transformers" / "config.json")
    write_served_config(entry, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / file, folder / file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def write_served_config(entry: Entry, folder: Path) -> None:
    """The configuration that SGLang reads, of the one that transformers has written."""
    path = folder / "config.json"
    document = {key: value for key, value in json.loads(path.read_text()).items() if key not in entry.dropped}
    path.write_text(json.dumps(document | {"architectures": [entry.served_as]} | entry.changes, indent=2))


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """As `tests.server.checkpoints` does: no two layers agree, and none is certain or uniform."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.normal_(0.0, 0.05)
        elif name.endswith("sinks"):
            weight.copy_(weight.normal_(0.0, 1.0).bfloat16())  # as SGLang keeps them
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
