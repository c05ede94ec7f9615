"""The committed weights, both: size, shape, and that they solve problems they were not trained on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from led_sglang import embedded
from led_sglang.embedded import MODEL_DIR, model_path
from training import MODEL_DIRS, evaluate

pytestmark = pytest.mark.slow

MAX_BYTES = 16_000_000
both = pytest.mark.parametrize("folder", MODEL_DIRS.values(), ids=MODEL_DIRS)


def test_the_default_is_the_reinforced_one() -> None:
    assert model_path() == str(MODEL_DIR) == str(MODEL_DIRS["rl"])


def test_the_two_are_not_the_same() -> None:
    weights = {(folder / "model.safetensors").read_bytes() for folder in MODEL_DIRS.values()}
    assert len(weights) == len(MODEL_DIRS)


@both
def test_files_are_small(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= MAX_BYTES


@both
def test_config_is_a_deep_small_qwen3(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["num_hidden_layers"] >= 12
    assert config["max_position_embeddings"] == 2048
    assert config["vocab_size"] % 64 == 0
    assert config["dtype"] == "float32"


@both
def test_parameters(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    num_parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert num_parameters <= 8_000_000
    assert dtypes == {"F32"}


def test_the_package_imports_no_torch() -> None:
    code = "import sys, led_sglang.embedded; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MODEL_DIR", MODEL_DIR / "absent")
    with pytest.raises(FileNotFoundError, match=r"training\.train"):
        model_path()


@both
@pytest.mark.parametrize(("task", "least"), [("arithmetic", 0.5), ("countdown", 0.2)])
def test_solves_held_out_problems(folder: Path, task: str, least: float) -> None:
    requested = ["--offline", "--task", task, "--model", str(folder), "--problems", "32", "--seed", "1"]
    is_right = evaluate.evaluate(evaluate.make_parser().parse_args(requested))
    assert sum(row[0] for row in is_right) / len(is_right) >= least
