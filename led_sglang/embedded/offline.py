"""Plain sampling with transformers, in batches; the yardstick that no server has a part in."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH_SIZE = 256


def sample(model_dir: str, questions: list[str], temperature: float, seed: int, max_new_tokens: int) -> list[str]:
    """One sampled continuation of each question's chat prompt, special tokens left out."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    torch.manual_seed(seed)
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        inputs = tokenizer(prompts[start : start + BATCH_SIZE], return_tensors="pt", padding=True)
        # The whole distribution is sampled: top_k and top_p of the generation config would cut its tail.
        outputs = model.generate(
            **inputs, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
        )
        texts += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
