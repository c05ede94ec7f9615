"""Plain sampling without a server, in batches: for evaluating offline and for reinforcement learning.

transformers' own `generate` copies the whole key/value cache at every token and goes on with finished rows; for a model
this small on a CPU that is most of the time. Here the cache is written in place and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

__all__ = ["Cache", "chat_prompts", "complete", "next_logits", "sample"]

BATCH_SIZE = 256
LEAVE_SHARE = 0.2  # finished rows are taken out once they are this share of the batch


@dataclass
class Cache:
    """Keys and values of every layer, and which positions a row may look at."""

    keys: Tensor  # (layers, B, kv heads, T, head size)
    values: Tensor  # the same
    is_seen: Tensor  # (B, T), false on left padding and on what is still to come
    length: int = 0

    @classmethod
    def empty(cls, config: Any, num_rows: int, num_positions: int) -> Cache:
        shape = (config.num_hidden_layers, num_rows, config.num_key_value_heads, num_positions, config.head_dim)
        is_seen = torch.zeros(num_rows, num_positions, dtype=torch.bool)
        return cls(torch.zeros(shape), torch.zeros(shape), is_seen)

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values, self.is_seen = self.keys[:, rows], self.values[:, rows], self.is_seen[rows]


def _attend(attention: Any, hidden: Tensor, rotary: Any, cache: Cache, layer: int, mask: Tensor) -> Tensor:
    """One layer's attention of T new positions to everything cached, them included: (B, T, H) to (B, T, H)."""
    num_rows, num_new, _ = hidden.shape
    split = (num_rows, num_new, -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(hidden).view(split)).transpose(1, 2)  # (B, heads, T, head size)
    key = attention.k_norm(attention.k_proj(hidden).view(split)).transpose(1, 2)  # (B, kv heads, T, head size)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    new, end = slice(cache.length, cache.length + num_new), cache.length + num_new
    cache.keys[layer][:, :, new] = key
    cache.values[layer][:, :, new] = attention.v_proj(hidden).view(split).transpose(1, 2)
    keys, values = cache.keys[layer][:, :, :end], cache.values[layer][:, :, :end]
    # The query heads that share a key head are laid along the new positions, so that keys need no copy.
    query = query.reshape(num_rows, keys.shape[1], -1, attention.head_dim)  # (B, kv heads, group * T, head size)
    scores = query @ keys.transpose(-1, -2) * attention.scaling  # (B, kv heads, group * T, end)
    group = query.shape[2] // num_new
    scores = scores.masked_fill(~mask.repeat(1, 1, group, 1), torch.finfo(scores.dtype).min)
    mixed = (scores.softmax(-1) @ values).view(num_rows, -1, num_new, attention.head_dim)  # (B, heads, T, head size)
    return attention.o_proj(mixed.transpose(1, 2).reshape(num_rows, num_new, -1))


def next_logits(model: Any, ids: Tensor, cache: Cache, is_text: Tensor) -> Tensor:
    """Logits after the last of the new ids, (B, V); `ids` and `is_text` are (B, T), padding is at the left."""
    end = cache.length + ids.shape[1]
    cache.is_seen[:, cache.length : end] = is_text
    positions = (cache.is_seen[:, :end].cumsum(-1) - 1).clamp_min(0)[:, cache.length :]  # (B, T)
    is_earlier = torch.ones(end, end, dtype=torch.bool).tril()[cache.length :]  # (T, end)
    mask = cache.is_seen[:, None, None, :end] & is_earlier  # (B, 1, T, end)
    hidden = model.model.embed_tokens(ids)  # (B, T, H)
    rotary = model.model.rotary_emb(hidden, positions)
    for index, layer in enumerate(model.model.layers):
        hidden = hidden + _attend(layer.self_attn, layer.input_layernorm(hidden), rotary, cache, index, mask)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    cache.length = end
    return model.lm_head(model.model.norm(hidden[:, -1]))


@torch.inference_mode()
def complete(
    model: Any, prompts: list[list[int]], temperature: float, max_new_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """One sampled completion of each prompt, its end token included where it came in time.

    The whole distribution is sampled. The same generator state, prompts and weights give the same completions.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])  # (B, T)
    is_text = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    cache = Cache.empty(model.config, len(prompts), width + max_new_tokens)
    completions: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts))  # which prompt each row of the batch belongs to
    is_live = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(max_new_tokens):
        probs = torch.softmax(next_logits(model, ids, cache, is_text) / temperature, -1)
        tokens = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
        for row, token, live in zip(rows.tolist(), tokens[:, 0].tolist(), is_live.tolist(), strict=True):
            if live:
                completions[row].append(token)
        is_live &= tokens[:, 0] != model.config.eos_token_id
        if not is_live.any():
            break
        if is_live.float().mean() < 1 - LEAVE_SHARE:
            cache.keep(is_live)
            rows, tokens, is_live = rows[is_live], tokens[is_live], is_live[is_live]
        ids, is_text = tokens, torch.ones_like(tokens, dtype=torch.bool)
    return completions


def chat_prompts(tokenizer: Any, questions: list[str]) -> list[list[int]]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _batches(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    for start in range(0, len(prompts), BATCH_SIZE):
        yield prompts[start : start + BATCH_SIZE]


def sample(model_dir: str, questions: list[str], temperature: float, seed: int, max_new_tokens: int) -> list[str]:
    """One sampled continuation of each question's chat prompt, special tokens left out."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    texts: list[str] = []
    for batch in _batches(chat_prompts(tokenizer, questions)):
        completions = complete(model, batch, temperature, max_new_tokens, generator)
        texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts
