"""What a trainer does with a LED server that it knows nothing of: SGLang's own fields, its ratios, its weight update.

The requests are those that Miles sends with sampling-support replay: a bounded top_p and top_k, the masks, and no
parameter of LED's. The behaviour policy's logprobs come back in `output_token_sampling_logprobs`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from led_sglang.testing.oracle import forward, softmax
from tests.server import checkpoints
from tests.server.clients import Client, sharp_server, thinking_prompt
from tests.server.scale.cases import LIMITS

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1200)]

NUM_REQUESTS, NUM_TOKENS = 24, 48
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "ignore_eos": True, "max_new_tokens": NUM_TOKENS}
FEW, MANY = 4.5, 8.0  # standard errors: of a mean that is right (7e-6 of all), and of one that is wrong
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rollout:
    prompt_ids: list[int]
    answer: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        found: list[int] = self.answer["output_ids"]
        return found

    @property
    def supports(self) -> list[list[int]]:
        found: list[list[int]] = self.answer["meta_info"]["output_token_sampling_mask"]
        return found

    def logprobs(self, is_engines: bool = False) -> Array:
        """Of the policy that drew the tokens; or of the model, as a trainer would have it of stock sampling."""
        meta = self.answer["meta_info"]
        if is_engines:
            return np.array([value for value, *_ in meta["output_token_logprobs"]])
        return np.array(meta["output_token_sampling_logprobs"])

    def policy(self, model: Any, sharpness: float) -> Array:
        """What a trainer's policy gives each token, over the set that it was drawn from."""
        logits = forward(model, self.prompt_ids + self.ids).final_logits[len(self.prompt_ids) - 1 : -1]
        picked = [
            softmax(row[support] * sharpness)[support.index(token)]
            for row, support, token in zip(logits, self.supports, self.ids, strict=True)
        ]
        return np.array(picked)


@pytest.fixture(scope="module")
def client(qwen3_folder: Path, logs: Path) -> Iterator[Client]:
    with sharp_server(qwen3_folder, logs / "scale_trainers.log", *LIMITS) as server:
        yield Client(server.url)


@pytest.fixture(scope="module")
def other_folder(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights after an update."""
    folder = tmp_path_factory.mktemp("updated")
    torch.manual_seed(5)
    model = checkpoints.load(qwen3_folder).float()
    for weight in model.parameters():
        weight.data *= 1 + 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(qwen3_folder).save_pretrained(folder)
    return folder


def rollouts(client: Client) -> list[Rollout]:
    def generate(number: int) -> Rollout:
        prompt_ids = thinking_prompt(800 + number, 12)
        body = {"input_ids": prompt_ids, "sampling_params": SAMPLING, "return_logprob": True}
        return Rollout(prompt_ids, client.post("/generate", body | {"return_sampling_mask": True}))

    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return list(pool.map(generate, range(NUM_REQUESTS)))


def errors(ratios: Array) -> float:
    """How many standard errors the mean is away from 1."""
    return float(abs(ratios.mean() - 1) / (ratios.std() / len(ratios) ** 0.5))


def test_a_training_step(client: Client, qwen3_folder: Path, other_folder: Path) -> None:
    """Generate, importance ratios that average to one, new weights, generate again."""
    for folder in (qwen3_folder, other_folder):
        assert client.post("/update_weights_from_disk", {"model_path": str(folder)})["success"]
        model = checkpoints.load(folder)
        found = rollouts(client)
        for rollout in found:
            stats = rollout.answer["meta_info"]["led_stats"]
            assert stats["fallbacks"] == 0 and stats["explored_tokens"] > 0
            for support, token in zip(rollout.supports, rollout.ids, strict=True):
                assert token in support and len(set(support)) == len(support) <= SAMPLING["top_k"]
        drawn, engines = (np.concatenate([one.logprobs(which) for one in found]) for which in (False, True))
        assert len(drawn) == NUM_REQUESTS * NUM_TOKENS
        for sharpness in (1.0, 0.8, 1.2):  # the policy that sampled, and two that have moved on
            policy = np.concatenate([one.policy(model, sharpness) for one in found])
            assert errors(policy / np.exp(drawn)) < FEW
            assert errors(policy / np.exp(engines)) > MANY, "the model's own logprobs would have done"
