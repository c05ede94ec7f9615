"""The server as rollout engine: new weights reach every part of LED, and the GRPO example runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from led_sglang.embedded import MODEL_DIR
from tests.server.clients import Client, Oracle, Request, check, thinking_prompt
from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[3]
EXAMPLE_LIMIT_S = 400.0  # a minute on an idle machine


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with every matrix disturbed, the LM head and the final norm among them."""
    folder = tmp_path_factory.mktemp("other_weights")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    for weight in model.parameters():
        weight.data *= 1 + 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def load(client: Client, folder: Path) -> None:
    assert client.post("/update_weights_from_disk", {"model_path": str(folder)})["success"]


def test_every_part_of_led_sees_new_weights(spare_server: Server, other_weights: Path) -> None:
    """The head that LED reads and the states it captures: reported numbers are the new checkpoint's, then the old's."""
    client, old, new = Client(spare_server.url), Oracle(MODEL_DIR), Oracle(other_weights)
    requested: Any = [Request(thinking_prompt(seed), num_tokens=16, seed=seed) for seed in range(4)]
    for folder, right, wrong in ((other_weights, new, old), (MODEL_DIR, old, new)):
        load(client, folder)
        replies = client.together(requested)
        check(right, *replies)
        assert wrong.compare_all(replies).faults
        assert any(any(reply.meta["led_explored"]) for reply in replies)


def run_example(*arguments: str) -> list[dict[str, Any]]:
    """The lines that it printed, one a step."""
    small = ("--steps", "2", "--questions", "4", "--group-size", "4", "--max-tokens", "128")
    command = [sys.executable, "examples/grpo_rollouts.py", *arguments, *small, "--learning-rate", "1e-3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("LED_SGLANG_CONFIG", None)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=EXAMPLE_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_steps(steps: list[dict[str, Any]]) -> None:
    assert [step["step"] for step in steps] == [0, 1]
    for step in steps:
        assert step["explored"] > 0
        assert 0.5 < step["mean_ratio"] < 1.5
        assert step["engine_gap"] < 1e-3, "the engine samples with the weights that torch has learnt"
        assert (step["loss"] != 0) == (step["mixed_groups"] > 0)
    assert steps[0]["loss"] != 0


def test_grpo_over_http(spare_server: Server) -> None:
    load(Client(spare_server.url), MODEL_DIR)
    check_steps(run_example("--url", spare_server.url))


def test_grpo_with_the_offline_engine() -> None:
    check_steps(run_example("--engine"))
