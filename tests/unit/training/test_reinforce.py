"""One step of reinforcement learning; needs the `train` extra, which CI does not install."""

from pathlib import Path

import pytest

pytest.importorskip("trl", reason='needs pip install "led_sglang[train]"')

from led_sglang.embedded import model_path
from training import reinforce


def test_a_step_runs_and_is_logged(tmp_path: Path) -> None:
    settings = ["--steps", "2", "--prompts-per-step", "4", "--max-completion-tokens", "32", "--eval-problems", "1"]
    args = reinforce.make_parser().parse_args([*settings, "--init", model_path(), "--out", str(tmp_path)])
    reinforce.reinforce(args)
    header, *rows = (tmp_path / "rl_log.csv").read_text().splitlines()
    assert header == reinforce.LOG_HEADER
    assert [row.split(",")[0] for row in rows] == ["0", "1", "2"]
    assert 0 < float(rows[1].split(",")[3]) < 6.9  # entropy in nats, below that of a uniform distribution
    assert (tmp_path / "model.safetensors").is_file()


def test_the_reward_is_the_graders() -> None:
    _, problem_of = reinforce.training_set(6, seed=0)
    reward = reinforce.Correctness(problem_of)
    prompts = list(problem_of)
    right = [f"</think>\n\n{problem_of[prompt].answer_text}" for prompt in prompts]
    assert reward(prompts, right) == [1.0] * len(prompts)
    assert reward(prompts, [text.replace("</think>", "") for text in right]) == [0.0] * len(prompts)
