"""Trains the embedded model on written solutions of generated problems, the stage before reinforcement learning.

    python -m training.train --steps 2500 --seed 1 --init DIR --out DIR

Data and schedule follow the seed and the step: the same machine makes the same weights.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.embedded import tokenizer as tokenizer_module
from training.batches import Batch, batches

__all__ = ["initial_model", "learning_rate", "main", "save"]

LOG_EVERY_STEPS = 100
LOG_HEADER = "step,seconds,tokens,learning_rate,loss"


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=tokenizer_module.padded_vocab_size(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokenizer_module.MAX_POSITIONS,
        initializer_range=0.04,  # the usual 0.02 starts slowly at this width
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The defaults of a request: the evaluated temperature, and no cut of the distribution's tail."""
    return GenerationConfig(
        do_sample=True,
        temperature=0.6,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def initial_model(init: Path | None, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A new model, or one with the weights in `init`, whose vocabulary may be another."""
    model = Qwen3ForCausalLM(model_config(tokenizer))
    if init is not None:
        _take_weights(model, tokenizer, init)
    return model


@torch.no_grad()
def _take_weights(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, init: Path) -> None:
    """Copies the weights; rows of embedding and head go to the token of the same text, new tokens keep their own."""
    old_ids = AutoTokenizer.from_pretrained(init).get_vocab()
    shared = [(new, old_ids[text]) for text, new in tokenizer.get_vocab().items() if text in old_ids]
    new_rows, old_rows = (torch.tensor(ids) for ids in zip(*shared, strict=True))
    old = Qwen3ForCausalLM.from_pretrained(init).state_dict()
    for name, weight in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            weight[new_rows] = old[name][old_rows]
        else:
            weight.copy_(old[name])


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over the first 100 steps, then a cosine over all of them, down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return peak * min(1.0, (step + 1) / 100) * cosine


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.config.use_cache = True  # trainers switch it off
    model.save_pretrained(out)
    generation_config(tokenizer).save_pretrained(out)
    tokenizer_module.save(out)


def make_optimizer(model: Qwen3ForCausalLM, peak: float) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms have their own scale to keep."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def take_step(model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, batch: Batch, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(input_ids=batch[0], labels=batch[1], use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


class Log:
    """Means of the loss over every 100 steps, to a csv file and to the terminal."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")
        self.losses: list[float] = []
        self.num_tokens = 0
        self._write(LOG_HEADER)

    def add(self, step: int, seconds: float, rate: float, batch: Batch, loss: float) -> None:
        self.losses.append(loss)
        self.num_tokens += batch[0].numel()
        if (step + 1) % LOG_EVERY_STEPS == 0:
            mean = sum(self.losses) / len(self.losses)
            self._write(f"{step + 1},{seconds:.0f},{self.num_tokens},{rate:.2e},{mean:.4f}")
            self.losses.clear()

    def _write(self, line: str) -> None:
        print(line, file=self.file, flush=True)
        print(line, flush=True)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_module.build()
    model = initial_model(args.init, tokenizer).train()
    optimizer = make_optimizer(model, args.peak_learning_rate)
    log = Log(args.out / "training_log.csv")
    start = last_save = time.monotonic()
    source = batches(tokenizer, args.seed, args.batch_tokens)
    for step, batch in enumerate(itertools.islice(source, args.steps)):
        rate = learning_rate(step, args.steps, args.peak_learning_rate)
        log.add(step, time.monotonic() - start, rate, batch, take_step(model, optimizer, batch, rate))
        if time.monotonic() - last_save > 60 * args.save_every_minutes:
            save(model, tokenizer, args.out)
            last_save = time.monotonic()
    save(model, tokenizer, args.out)


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=integer(1), default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=integer(1), default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from the weights in this directory, matched by token text")
    parser.add_argument("--batch-tokens", type=integer(1), default=2048)
    parser.add_argument("--peak-learning-rate", type=number(0), default=2e-3)
    parser.add_argument("--save-every-minutes", type=number(0), default=5)
    args = parser.parse_args(argv)
    files.check_folder(args.out)
    train(args)


def main(argv: list[str] | None = None) -> int:
    return guarded("train", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
