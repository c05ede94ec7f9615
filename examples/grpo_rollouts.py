"""A small GRPO loop on the embedded model: LED explores, torch learns, SGLang takes the new weights.

    make serve &  python examples/grpo_rollouts.py --url http://127.0.0.1:30000
    python examples/grpo_rollouts.py --engine         # without a server: SGLang's offline Engine in this process

Each step samples a group of answers to every question with LED, rewards the right ones, takes a policy gradient step
whose importance ratios divide by `led_logprob` (the policy that really drew the tokens), writes the weights to a folder
and lets SGLang load them. One JSON line is printed a step. GRPO: arXiv 2402.03300; ratios are clipped from above only,
because the tokens come from another policy than the one that learns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from led_sglang.embedded import MODEL_DIR, countdown

TEMPERATURE = 1.0  # then the engine's own logprobs, behind the thought, are those of the policy too
MAX_RATIO = 2.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Rollout:
    prompt_ids: list[int]
    output_ids: list[int]
    behaviour_logprobs: list[float]  # of each output token under the policy that drew it, nats
    final_logprobs: list[float]  # of each output token under the model's own distribution, as the engine computed it
    num_explored: int
    text: str


@dataclass(frozen=True)
class Sampling:
    group_size: int
    max_tokens: int
    seed: int  # the samples of one prompt differ all the same


class RolloutEngine(Protocol):
    def sample(self, prompts: list[list[int]], options: Sampling) -> list[list[Rollout]]:
        """`group_size` answers to every prompt."""

    def load(self, folder: Path) -> None:
        """Replace the weights. Raises RuntimeError if SGLang could not."""


def request(prompts: list[list[int]], options: Sampling) -> dict[str, Any]:
    sampling = {
        "temperature": TEMPERATURE,
        "n": options.group_size,
        "max_new_tokens": options.max_tokens,
        "sampling_seed": options.seed,
        "skip_special_tokens": False,
        "custom_params": {"led": {"depth": 8, "trace": True}},
    }
    return {"input_ids": prompts, "sampling_params": sampling, "return_logprob": True}


def read(prompts: list[list[int]], group_size: int, answers: list[dict[str, Any]]) -> list[list[Rollout]]:
    """SGLang answers with the n samples of the first prompt, then those of the second, ..."""
    rollouts = [
        _read_one(prompts[i // group_size], answer["output_ids"], answer["text"], answer["meta_info"])
        for i, answer in enumerate(answers)
    ]
    return [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]


def _read_one(prompt_ids: list[int], output_ids: list[int], text: str, meta: dict[str, Any]) -> Rollout:
    final = [logprob for logprob, _, _ in meta["output_token_logprobs"]]
    # Null where the engine decoded, behind the thought: there its own distribution drew the token.
    behaviour = [own if led is None else led for led, own in zip(meta["led_logprob"], final, strict=True)]
    return Rollout(prompt_ids, output_ids, behaviour, final, meta["led_stats"]["explored_tokens"], text)


class ServerRollouts:
    """A running LED server."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=300)

    def sample(self, prompts: list[list[int]], options: Sampling) -> list[list[Rollout]]:
        answer = self.client.post("/generate", json=request(prompts, options)).raise_for_status()
        return read(prompts, options.group_size, answer.json())

    def load(self, folder: Path) -> None:
        answer = self.client.post("/update_weights_from_disk", json={"model_path": str(folder)})
        if answer.status_code != 200 or not answer.json()["success"]:
            raise RuntimeError(f"the server did not take the weights: {answer.text}")


class EngineRollouts:
    """SGLang's offline Engine with LED switched on."""

    def __init__(self) -> None:
        from sglang import Engine

        from led_sglang import launch

        arguments = {"dtype": "float32", "random_seed": 0, "log_level": "warning"}
        launch.enable(str(MODEL_DIR), **arguments)
        self.engine = Engine(model_path=str(MODEL_DIR), **arguments)

    def sample(self, prompts: list[list[int]], options: Sampling) -> list[list[Rollout]]:
        return read(prompts, options.group_size, self.engine.generate(**request(prompts, options)))

    def load(self, folder: Path) -> None:
        success, message, *_ = self.engine.update_weights_from_disk(str(folder))
        if not success:
            raise RuntimeError(f"the engine did not take the weights: {message}")


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(G, n) rewards to (G, n) advantages: relative to the group, in its standard deviations."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)


def policy_logprobs(model: Any, rollout: Rollout) -> torch.Tensor:
    """log pi of the output tokens: (T,)."""
    ids = torch.tensor([rollout.prompt_ids + rollout.output_ids])
    logits = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / TEMPERATURE  # (T, V)
    return torch.log_softmax(logits, -1).gather(-1, ids[0, len(rollout.prompt_ids) :, None])[:, 0]


@dataclass
class Step:
    """The numbers of one optimizer step."""

    loss: float = 0.0
    mean_ratio: float = 0.0  # of pi to the policy that drew; at most 1 on average, the mass that LED's top k leaves out
    engine_gap: float = 0.0  # largest difference of the engine's own logprobs and the learner's: same weights?


def learn(model: Any, optimizer: torch.optim.Optimizer, groups: list[list[Rollout]], rewards: torch.Tensor) -> Step:
    """One optimizer step on the clipped, importance-weighted GRPO objective."""
    result, ratios = Step(), []
    num_rollouts = sum(map(len, groups))
    for group, group_advantages in zip(groups, advantages(rewards), strict=True):
        for rollout, advantage in zip(group, group_advantages, strict=True):
            logprobs = policy_logprobs(model, rollout)
            ratio = torch.exp(logprobs - torch.tensor(rollout.behaviour_logprobs))
            loss = -(ratio.clamp(max=MAX_RATIO) * advantage).mean() / num_rollouts
            loss.backward()
            result.loss += loss.item()
            gap = logprobs.detach() - torch.tensor(rollout.final_logprobs)
            result.engine_gap = max(result.engine_gap, gap.abs().max().item())
            ratios.append(ratio.detach())
    result.mean_ratio = torch.cat(ratios).mean().item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return result


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder


def train(rollouts: RolloutEngine, options: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    stream = countdown.stream("train", seed=0)
    for step in range(options.steps):
        batch = [next(stream) for _ in range(options.questions)]
        chats = [[{"role": "user", "content": problem.question}] for problem in batch]
        prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
        groups = rollouts.sample(prompts, Sampling(options.group_size, options.max_tokens, seed=step))
        rewards = torch.tensor(
            [
                [float(countdown.grade(rollout.text, problem)) for rollout in group]
                for group, problem in zip(groups, batch, strict=True)
            ]
        )
        result = learn(model, optimizer, groups, rewards)
        rollouts.load(save(model, folder))
        all_rollouts = [rollout for group in groups for rollout in group]
        line = {
            "step": step,
            "reward": round(rewards.mean().item(), 4),
            "mixed_groups": int((rewards.std(-1) > 0).sum()),  # the others teach nothing
            "tokens": sum(len(rollout.output_ids) for rollout in all_rollouts),
            "explored": sum(rollout.num_explored for rollout in all_rollouts),
            "loss": round(result.loss, 5),
            "mean_ratio": round(result.mean_ratio, 4),
            "engine_gap": round(result.engine_gap, 6),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on the embedded model with LED rollouts")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running LED server of the embedded model; its weights are replaced")
    where.add_argument("--engine", action="store_true", help="SGLang's offline Engine in this process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--questions", type=int, default=8, help="a step")
    parser.add_argument("--group-size", type=int, default=8, help="answers to each question")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="led-grpo-") as folder:
        train(EngineRollouts() if options.engine else ServerRollouts(options.url), options, Path(folder))


if __name__ == "__main__":
    main()
