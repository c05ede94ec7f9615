"""What training starts from and how its schedule runs."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from led_sglang.embedded import model_path, tokenizer
from training import train


def test_the_schedule_follows_the_step() -> None:
    rates = [train.learning_rate(step, 1000, 2e-3) for step in (0, 99, 500, 999)]
    assert rates == pytest.approx([2e-5, 2e-3 * 0.976, 2e-3 * 0.505, 2e-5], rel=0.02)


def test_rows_follow_the_tokens_text(tmp_path: Path) -> None:
    """A model over a vocabulary in another order gives the same rows to the same tokens."""
    here, there = tokenizer.build(), AutoTokenizer.from_pretrained(model_path())
    model = train.initial_model(Path(model_path()), here)
    ids = [here.convert_tokens_to_ids(text) for text in ("Ġ17", "</think>", "Ġ*")]
    there_ids = [there.convert_tokens_to_ids(text) for text in ("Ġ17", "</think>", "Ġ*")]
    old = train.Qwen3ForCausalLM.from_pretrained(model_path())
    for rows in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(model.state_dict()[rows][ids], old.state_dict()[rows][there_ids])
    assert torch.equal(model.state_dict()["model.norm.weight"], old.state_dict()["model.norm.weight"])
