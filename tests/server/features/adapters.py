"""Small random LoRA adapters of the embedded model, strong enough to change every token."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from led_sglang.embedded import MODEL_DIR

RANK, ALPHA = 4, 8
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."


def build(folder: Path, targets: tuple[str, ...], seed: int = 1) -> Path:
    """An adapter in PEFT's format over the linear layers named in `targets`; returns `folder`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in _linear_weights():
        if name.rsplit(".", 1)[-1] in targets:
            num_out, num_in = weight.shape
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(RANK, num_in, generator=generator) * 0.1
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(num_out, RANK, generator=generator) * 0.1
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": list(targets)}))
    return folder


def merge(adapter: Path, folder: Path) -> Path:
    """The checkpoint whose weights are W + alpha / rank * B A; returns `folder`."""
    tensors = load_file(adapter / WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    modules = dict(model.named_modules())
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            modules[name].weight.data += ALPHA / RANK * (b @ a)
    model.save_pretrained(folder)
    return folder


def _linear_weights() -> list[tuple[str, torch.Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return [(name, module.weight) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
