"""Heads of EAGLE and EAGLE3 for the embedded model, NEXTN of a MiMo: fitted by least squares in a few seconds.

What they draft is no better than a linear map can make it, and much better than chance as long as they are given the
hidden states of the right layer, row and step: tokens per verification show that. Their attention and MLP add nothing
(the last matrix of both is zero); those of STANDALONE's draft do.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from led_sglang.embedded import MODEL_DIR, tasks
from tests.server import checkpoints

__all__ = ["CAPTURED", "add_mimo_mtp", "eagle3_head", "eagle_head"]

CAPTURED = (2, 6, 9)  # inputs of these of the twelve layers, which SGLang gives to EAGLE3
NUM_TEXTS = 150  # of each task
RIDGE = 1e-3


@dataclass(frozen=True)
class States:
    """Of pairs of neighbouring tokens, all (N, H): what a head reads, and what it should say."""

    model: PreTrainedModel
    embedding: Tensor  # of the second token
    captured: Tensor  # at the first token, (N, len(CAPTURED) * H)
    normed: Tensor  # final, at the first token
    next_normed: Tensor
    next_output: Tensor  # of the last layer, before the norm, at the second token


@cache
def _states() -> States:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    output: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, args: output.append(args[0][0]))
    rows: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for text in _texts():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            result = model.model(ids, output_hidden_states=True)
            captured = torch.cat([result.hidden_states[layer][0] for layer in CAPTURED], 1)
            normed, last = result.last_hidden_state[0], output.pop()
            embedding = model.model.embed_tokens(ids[0])
            rows.append((embedding[1:], captured[:-1], normed[:-1], normed[1:], last[1:]))
    return States(model, *(torch.cat(column) for column in zip(*rows, strict=True)))


def _texts() -> list[str]:
    return [
        f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n<think>\n{problem.thinking}\n</think>"
        f"\n\n{problem.answer_text}<|im_end|>"
        for task in tasks.TASK_NAMES
        for problem in tasks.generate(task, "train", NUM_TEXTS, seed=5)
    ]


def _least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """(targets' width, inputs' width): W with inputs W^T near targets."""
    x, y = inputs.double(), targets.double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, x.T @ y).T.float()


def eagle_head(folder: Path) -> Path:
    """From the next token's embedding and the final state: the final state that follows."""
    states = _states()
    weight = _least_squares(torch.cat((states.embedding, states.normed), 1), states.next_normed)
    size = len(weight)
    tensors = {"fc.weight": weight, "fc.bias": torch.zeros(size), **_layer("layers.0.", size, size)}
    return _save(folder, "LlamaForCausalLMEagle", tensors)


def eagle3_head(folder: Path) -> Path:
    """From the inputs of three layers: the last one's output at the next token, which goes through norm and head."""
    states = _states()
    weight = _least_squares(states.captured, states.next_output)
    size = len(weight)
    tensors = {
        "fc.weight": weight,
        "norm.weight": states.model.model.norm.weight,
        "lm_head.weight": states.model.lm_head.weight,
        "midlayer.input_layernorm.weight": torch.ones(size),
        "midlayer.hidden_norm.weight": torch.ones(size),
        **_layer("midlayer.", size, 2 * size),
    }
    return _save(folder, "LlamaForCausalLMEagle3", tensors)


def _layer(prefix: str, size: int, attention_input: int) -> dict[str, Tensor]:
    """A decoder layer of random weights that adds nothing to its residual stream."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (size, attention_input),
        "self_attn.k_proj": (size // 2, attention_input),
        "self_attn.v_proj": (size // 2, attention_input),
        "mlp.gate_proj": (2 * size, size),
        "mlp.up_proj": (2 * size, size),
    }
    weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    weights |= {"self_attn.o_proj": torch.zeros(size, size), "mlp.down_proj": torch.zeros(size, 2 * size)}
    weights["post_attention_layernorm"] = torch.ones(size)
    return {f"{prefix}{name}.weight": weight for name, weight in weights.items()}


def _save(folder: Path, architecture: str, tensors: dict[str, Tensor]) -> Path:
    target: dict[str, Any] = json.loads((MODEL_DIR / "config.json").read_text())
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "max_position_embeddings", "rms_norm_eps", "eos_token_id", "pad_token_id", "hidden_act")  # fmt: skip
    config = {key: target[key] for key in kept} | {
        "architectures": [architecture],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "draft_vocab_size": target["vocab_size"],
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "rope_theta": 10000.0,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def add_mimo_mtp(folder: Path, texts: list[list[int]]) -> Path:
    """Put a layer of multi-token prediction (NEXTN) into a MiMo checkpoint of `checkpoints`; it knows these texts."""
    path, model = folder / "config.json", checkpoints.load(folder)
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_nextn_predict_layers": 1}, indent=2))
    inputs, targets = [], []
    for text in texts:
        ids = torch.tensor([text])
        with torch.no_grad():
            state, embedding = model.model(ids).last_hidden_state[0], model.model.embed_tokens(ids[0])
        inputs.append(torch.cat((_normed(state[:-1]), _normed(embedding[1:])), 1))
        targets.append(state[1:])
    weight = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution.T.float()
    size, prefix = config["hidden_size"], "model.mtp_layers.0."
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm")
    tensors = {f"{prefix}{name}.weight": torch.ones(size) for name in norms} | _layer(prefix, size, size)
    widths = {"q": size, "k": size // 2, "v": size // 2}
    tensors |= {f"{prefix}self_attn.{name}_proj.bias": torch.zeros(width) for name, width in widths.items()}
    save_file({**tensors, f"{prefix}input_proj.weight": weight.contiguous()}, folder / "mtp.safetensors")
    return folder


def _normed(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()
