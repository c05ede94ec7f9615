"""The committed weights: size, shape, and that they solve problems they were not trained on."""

import json
import subprocess
import sys

import pytest

from led_sglang.embedded import MODEL_DIR, evaluate, model_path

MAX_BYTES = 16_000_000


def test_files_are_small() -> None:
    assert model_path() == str(MODEL_DIR)
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= MAX_BYTES


def test_config_is_a_deep_small_qwen3() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["num_hidden_layers"] >= 12
    assert config["max_position_embeddings"] == 2048
    assert config["vocab_size"] % 64 == 0
    assert config["dtype"] == "float32"


def test_parameters() -> None:
    from safetensors import safe_open

    with safe_open(MODEL_DIR / "model.safetensors", framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    num_parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert num_parameters <= 8_000_000
    assert dtypes == {"F32"}


def test_the_package_imports_no_torch() -> None:
    code = "import sys, led_sglang.embedded; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("led_sglang.embedded.MODEL_DIR", MODEL_DIR / "absent")
    with pytest.raises(FileNotFoundError, match=r"embedded\.train"):
        model_path()


def test_solves_held_out_problems() -> None:
    args = evaluate.make_parser().parse_args(["--offline", "--problems", "24", "--seed", "1"])
    is_right = evaluate.evaluate_offline(args)
    assert sum(is_right) / len(is_right) >= 0.5
