"""Small random float32 checkpoints of the paper's architectures, whose layers disagree sharply.

Weights of the usual random scale give near-uniform posteriors in every layer and hide a wrong layer, order or norm.
Here matrices are drawn with a deviation of 0.05, norms between 0.5 and 1.5, the embedding is EMBEDDING_SCALE times
larger and the LM head HEAD_SCALE times, so that no layer is certain, none is uniform, and no two agree.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from led_sglang.embedded import MODEL_DIR

NUM_LAYERS = 12
VOCAB_SIZE = 1003  # more than the tokenizer knows; SGLang pads it to 1024, so that head rows exist which are no tokens
MARKS = {mark["content"]: mark["id"] for mark in json.loads((MODEL_DIR / "tokenizer.json").read_text())["added_tokens"]}
MARK_ROWS = range(797, 802)  # padding, start, end, <think> and </think>
OPEN_ID, CLOSE_ID, END_ID = MARKS["<think>"], MARKS["</think>"], MARKS["<|im_end|>"]
MARKERS = (OPEN_ID, CLOSE_ID)
HEAD_SCALE = 4.0
EMBEDDING_SCALE = 6.0

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": END_ID,
    "pad_token_id": MARKS["<|endoftext|>"],
    "use_cache": True,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def moe(**changes: Any) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(**COMMON | EXPERTS | changes, head_dim=32, norm_topk_prob=True)


@dataclass(frozen=True)
class Architecture:
    """What SGLang serves, and the transformers configuration that computes the same."""

    served_as: str  # in `architectures` of config.json
    config: Callable[[], PretrainedConfig]


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3": Architecture("Qwen3ForCausalLM", lambda: Qwen3Config(**COMMON, head_dim=32)),
    # SGLang joins the parts of a head that is cut over the ranks of data-parallel attention only if they are equal, and
    # on a CPU it cuts the key heads for as many ranks as there are, though fewer share them.
    "qwen3_moe_even": Architecture("Qwen3MoeForCausalLM", lambda: moe(vocab_size=1024, num_key_value_heads=4)),
    "qwen3_moe": Architecture("Qwen3MoeForCausalLM", lambda: moe()),
    "qwen2": Architecture("Qwen2ForCausalLM", lambda: Qwen2Config(**COMMON)),
    "llama": Architecture("LlamaForCausalLM", lambda: LlamaConfig(**COMMON)),
    "mimo": Architecture("MiMoForCausalLM", lambda: Qwen2Config(**COMMON)),  # transformers has no class of its own
}

MIMO_CONFIGURATION = '''\
from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    """As in the released checkpoints, which bring their configuration class with them."""

    model_type = "mimo"
'''


def build(name: str, folder: Path, seed: int = 20260201) -> Path:
    """Write the checkpoint `name` into `folder` and return it; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[name].config()
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    sharpen(model)
    place_marks(model)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / file, folder / file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name == "mimo":
        serve_as_mimo(folder)
    return folder


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    for parameter_name, weight in model.named_parameters():
        if parameter_name.endswith("bias"):
            weight.normal_(0.0, 0.05)
        elif weight.dim() == 1:  # norms: transformers starts them at 1, where a forgotten one would not show
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(0.0, 0.05)
    model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    model.get_output_embeddings().weight.mul_(HEAD_SCALE)


@torch.no_grad()
def place_marks(model: PreTrainedModel) -> None:
    """The tests' biases and seeds were chosen for the rows of MARK_ROWS: they are given to the tokenizer's marks."""
    there = list(MARKS.values())
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        weight[[*there, *MARK_ROWS]] = weight[[*MARK_ROWS, *there]]


def serve_as_mimo(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(
        architectures=["MiMoForCausalLM"], model_type="mimo", auto_map={"AutoConfig": "configuration_mimo.MiMoConfig"}
    )
    path.write_text(json.dumps(config, indent=2))
    (folder / "configuration_mimo.py").write_text(MIMO_CONFIGURATION)


def load(folder: Path) -> PreTrainedModel:
    """The checkpoint in float64, for the recomputation."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "mimo":
        model_class = AutoModelForCausalLM._model_mapping[Qwen2Config]
        model = model_class.from_pretrained(folder, config=Qwen2Config(**COMMON), dtype=torch.float64)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # the others know no float64
    return model.eval()
