#!/usr/bin/env python3
"""How well some layers of the embedded model draft for all: `python scripts/draft_layers.py 0,1,2,3,4,10,11 0,1,2`.

The model answers held-out problems greedily; at each place the layers' arg-max is right or wrong, and from that follows
how many tokens a verification of three drafts would yield (1 to 4). No server is needed.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from led_sglang.embedded import MODEL_DIR, draft, tasks

NUM_PROBLEMS = 12  # of each task
NUM_TOKENS = 200
NUM_STEPS = 3


def answers(model: PreTrainedModel) -> list[tuple[torch.Tensor, int]]:
    """Token ids of prompt and greedy answer, (1, T), and how many are the prompt's."""
    tokenizer, found = AutoTokenizer.from_pretrained(MODEL_DIR), []
    for task in tasks.TASK_NAMES:
        for problem in tasks.generate(task, "held_out", NUM_PROBLEMS, seed=7):
            text = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            prompt = tokenizer(text, return_tensors="pt")["input_ids"]
            ids = model.generate(prompt, do_sample=False, max_new_tokens=NUM_TOKENS)
            found.append((ids, prompt.shape[1]))
    return found


def measure(model: PreTrainedModel, texts: list[tuple[torch.Tensor, int]]) -> tuple[float, float]:
    """The share of places where the model's arg-max is the text, and tokens per verification."""
    right, num_verifications, num_tokens = [], 0, 0
    for ids, start in texts:
        chosen = model(ids, use_cache=False).logits[0, start:-1].argmax(-1)
        is_right = (chosen == ids[0, start + 1 :]).tolist()  # the first token is the prefill's
        right += is_right
        place = 0
        while place < len(is_right):
            run = next((i for i, ok in enumerate(is_right[place : place + NUM_STEPS]) if not ok), NUM_STEPS)
            place, num_verifications = place + run + 1, num_verifications + 1
        num_tokens += len(is_right)
    return sum(right) / len(right), num_tokens / num_verifications


@torch.no_grad()
def main(argv: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    layers, texts = list(model.model.layers), answers(model)
    for choice in argv or [",".join(map(str, draft.LAYERS))]:
        kept = [int(layer) for layer in choice.split(",")]
        model.model.layers = torch.nn.ModuleList([layers[layer] for layer in kept])
        model.config.num_hidden_layers = len(kept)
        share, yielded = measure(model, texts)
        print(f"{choice}: right in {share:.1%} of places, {yielded:.2f} tokens per verification", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
