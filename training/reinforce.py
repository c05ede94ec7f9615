"""Reinforcement learning after the supervised stage: GRPO with a reward for right answers, by TRL's trainer.

    python -m training.reinforce --steps 120 --seed 2 --init DIR --out DIR

needs `pip install "led_sglang[train]"`. The log has one line a step: the reward, the entropy of the final layer's
posterior where tokens were sampled, the length; and now and then pass@1 and pass@16 on held-out problems.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.embedded import tasks
from training.batches import render
from training.offline import chat_prompts, complete
from training.scoring import final_answer, sample_scores
from training.train import save

__all__ = ["LOG_HEADER", "Correctness", "main", "make_parser", "reinforce", "training_set"]

ARITHMETIC_SHARE = 0.2  # kept in the mix so that it is not forgotten
GROUP_SIZE = 16  # completions of one prompt, whose mean reward is the baseline
MICRO_BATCH = 64  # completions in one forward and backward pass
EVAL_TEMPERATURE = 0.6
EVAL_TOKENS = 256
EVAL_SEED = 2  # of the problems and the noise: the same for every run
LOG_HEADER = "step,seconds,reward,entropy,length,truncated,unanimous,pass_at_1,pass_at_16"


def training_set(num_prompts: int, seed: int) -> tuple[Dataset, dict[str, tasks.Problem]]:
    """The prompts in order, and the problem behind each text."""
    chosen = list(itertools.islice(tasks.mixed("train", seed, ARITHMETIC_SHARE), num_prompts))
    prompts = [render(problem).prompt for problem in chosen]
    return Dataset.from_dict({"prompt": prompts}), dict(zip(prompts, chosen, strict=True))


class Sampler:
    """TRL's rollout function. The weights are the trainer's own, so that they are always the current ones."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        prompt_ids = trainer.processing_class(prompts, add_special_tokens=False)["input_ids"]
        limit, temperature = trainer.args.max_completion_length, trainer.args.temperature
        completion_ids = complete(trainer.model, prompt_ids, temperature, limit, self.generator)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


class Correctness:
    """TRL's reward function: 1 for an answer that the task's grader accepts after finished thinking, else 0."""

    __name__ = "correctness"

    def __init__(self, problem_of: dict[str, tasks.Problem]) -> None:
        self.problem_of = problem_of

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [float(tasks.grade(final_answer(text), self.problem_of[prompt])) for prompt, text in pairs]


def _groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def held_out_scores(model: Qwen3ForCausalLM, tokenizer: Any, num_problems: int, seed: int) -> dict[str, float | int]:
    """pass@1 and pass@16 of countdown."""
    chosen = tasks.generate("countdown", "held_out", num_problems, seed)
    generator = torch.Generator().manual_seed(seed)
    is_right = []
    for group in _groups(list(chosen), 256 // GROUP_SIZE):
        repeated = [problem for problem in group for _ in range(GROUP_SIZE)]
        prompts = chat_prompts(tokenizer, [problem.question for problem in repeated])
        completions = complete(model, prompts, EVAL_TEMPERATURE, EVAL_TOKENS, generator)
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        is_right += [tasks.grade(final_answer(text), problem) for text, problem in zip(texts, repeated, strict=True)]
    return sample_scores(list(_groups(is_right, GROUP_SIZE)))


class Log(TrainerCallback):
    """Writes a line a step; saves the weights whenever it looks at the held-out problems."""

    def __init__(self, args: argparse.Namespace, model: Qwen3ForCausalLM, tokenizer: Any) -> None:
        self.args, self.model, self.tokenizer = args, model, tokenizer
        self.file = (args.out / "rl_log.csv").open("w")
        self.start = time.monotonic()
        self._write(LOG_HEADER)
        self._write(f"0,0,,,,,,{self._scores()}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return
        keys = ("reward", "entropy", "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std")
        numbers = ",".join(f"{logs[key]:.4f}" for key in keys)
        is_due = state.global_step % self.args.eval_every_steps == 0 or state.global_step == self.args.steps
        scores = self._scores() if is_due else ","
        self._write(f"{state.global_step},{time.monotonic() - self.start:.0f},{numbers},{scores}")
        if is_due:
            save(self.model, self.tokenizer, self.args.out)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.file.close()

    def _scores(self) -> str:
        scores = held_out_scores(self.model, self.tokenizer, self.args.eval_problems, EVAL_SEED)
        return f"{scores['pass_at_1']},{scores['pass_at_n']}"

    def _write(self, line: str) -> None:
        print(line, file=self.file, flush=True)


def grpo_config(args: argparse.Namespace) -> GRPOConfig:
    """Plain GRPO, on policy: no reference model, one update for each batch of completions, float32 on the CPU."""
    return GRPOConfig(
        output_dir=str(args.out / "trainer"),
        max_steps=args.steps,
        seed=args.seed,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=5,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=args.prompts_per_step * GROUP_SIZE // MICRO_BATCH,
        num_generations=GROUP_SIZE,
        max_completion_length=args.max_completion_tokens,
        temperature=1.0,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def reinforce(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.init)
    model = Qwen3ForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    prompts, problem_of = training_set(args.steps * args.prompts_per_step, args.seed)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=Correctness(problem_of),
        args=grpo_config(args),
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[Log(args, model, tokenizer)],
        rollout_func=Sampler(args.seed),
    )
    trainer.train()
    save(model, tokenizer, args.out)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=integer(1), default=120)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=integer(1), default=1)
    parser.add_argument("--init", type=Path, required=True, help="directory of the supervised model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts-per-step", type=integer(1), default=16)
    parser.add_argument("--learning-rate", type=number(0), default=1e-4)
    parser.add_argument("--max-completion-tokens", type=integer(1), default=176)
    parser.add_argument("--eval-every-steps", type=integer(1), default=20)
    parser.add_argument("--eval-problems", type=integer(1), default=48)
    return parser


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    args = make_parser().parse_args(argv)
    files.check_folder(args.out)
    reinforce(args)


def main(argv: list[str] | None = None) -> int:
    return guarded("reinforce", lambda: command(argv), install="pip install 'led_sglang[train]'")


if __name__ == "__main__":
    sys.exit(main())
