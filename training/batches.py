"""Turns problems into training batches: sorted by length, so that padding wastes little and rows stay independent."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from led_sglang.embedded.tasks import Problem, mixed
from led_sglang.embedded.tokenizer import SYSTEM_MESSAGES

__all__ = ["Batch", "batches", "render"]

ARITHMETIC_SHARE = 0.3  # of the problems; the rest is countdown
POOL_SIZE = 2048  # problems sorted together; larger pools pad less
IGNORED = -100  # the label that transformers leaves out of the loss

Row = tuple[list[int], int]  # the ids of prompt and completion, and how many of them are the prompt's
Batch = tuple[torch.Tensor, torch.Tensor]  # input_ids and labels, both (B, T)


@dataclass(frozen=True)
class Example:
    prompt: str
    completion: str


def render(problem: Problem, system: str | None = None) -> Example:
    """The chat template's text, written out because jinja is too slow here; a test compares the two."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    prompt = f"{head}<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return Example(prompt, f"{problem.thinking}\n</think>\n\n{problem.answer_text}<|im_end|>")


def _token_ids(tokenizer: PreTrainedTokenizerFast, chosen: list[Problem], rng: random.Random) -> list[Row]:
    """The rows of the problems; some get a system message, as a client may send one."""
    systems = [rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else None for _ in chosen]
    examples = [render(problem, system) for problem, system in zip(chosen, systems, strict=True)]
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    completions = tokenizer([example.completion for example in examples])["input_ids"]
    return [(prompt + rest, len(prompt)) for prompt, rest in zip(prompts, completions, strict=True)]


def _collate(rows: list[Row], pad_id: int) -> Batch:
    """Pads at the right, where a causal model needs no mask: a pad is seen only by pads, whose labels are ignored."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), pad_id)  # (B, T)
    labels = torch.full((len(rows), length), IGNORED)  # (B, T)
    for row, (ids, num_prompt) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
    return input_ids, labels


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int) -> Iterator[Batch]:
    """Endless batches of about `batch_tokens` tokens each, from the train split."""
    rng = random.Random(seed)
    source = mixed("train", seed, ARITHMETIC_SHARE)
    while True:
        rows = _token_ids(tokenizer, list(itertools.islice(source, POOL_SIZE)), rng)
        groups = _cut(sorted(rows, key=lambda row: len(row[0])), batch_tokens)
        rng.shuffle(groups)
        for group in groups:
            yield _collate(group, tokenizer.pad_token_id)


def _cut(rows: list[Row], batch_tokens: int) -> list[list[Row]]:
    """Splits rows sorted by length where the next row would take the padded batch over the budget."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > batch_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups
