"""Sampling in this process: the cache written in place says what transformers says, whoever else is in the batch."""

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from led_sglang.embedded import model_path
from training import offline

MODEL = Qwen3ForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
TOKENIZER = AutoTokenizer.from_pretrained(model_path())
PROMPTS = offline.chat_prompts(TOKENIZER, ["What is 7?", "Please work out (3 + 14) * 2 - 5.", "Make 24 from 3, 8, 5."])


@torch.inference_mode()
def test_logits_agree_with_transformers_on_ragged_rows() -> None:
    width, more = max(map(len, PROMPTS)), 5
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    is_text = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in PROMPTS])
    end_of_log = torch.tensor([prompt[-more:] for prompt in PROMPTS])
    cache = offline.Cache.empty(MODEL.config, len(PROMPTS), width + more)
    got = [offline.next_logits(MODEL, ids, cache, is_text)]
    for step in range(more):
        if step == 2:  # one row leaves
            cache.keep(torch.tensor([True, False, True]))
            end_of_log, got = end_of_log[[0, 2]], [logits[[0, 2]] for logits in got]
        got.append(
            offline.next_logits(MODEL, end_of_log[:, step : step + 1], cache, torch.ones_like(end_of_log[:, :1]).bool())
        )
    for row, prompt in enumerate([PROMPTS[0], PROMPTS[2]]):
        whole = MODEL(torch.tensor([prompt + prompt[-more:]])).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack([logits[row] for logits in got]), whole, atol=1e-3, rtol=1e-4)


def test_completions_follow_the_generator_and_end_at_the_end_token() -> None:
    runs = [offline.complete(MODEL, PROMPTS * 3, 0.6, 160, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    end = TOKENIZER.eos_token_id
    assert any(ids[-1] == end for ids in runs[0])
    assert all(end not in ids[:-1] and len(ids) <= 160 for ids in runs[0])
    assert all(ids[-1] == end or len(ids) == 160 for ids in runs[0])
