"""The small reasoning models served by default; importing this loads neither torch nor transformers."""

from pathlib import Path

__all__ = ["MODEL_DIR", "MODEL_DIRS", "model_path"]

MODEL_DIR = Path(__file__).resolve().parent / "model"
# After reinforcement learning, which is the default, and before it.
MODEL_DIRS = {"rl": MODEL_DIR, "sft": MODEL_DIR.with_name("model_sft")}


def model_path(name: str = "rl") -> str:
    """The directory to give to `--model-path`.

    Raises ValueError for an unknown name, FileNotFoundError if the weights did not come with the installation.
    """
    if name not in MODEL_DIRS:
        raise ValueError(f"unknown embedded model {name!r}; one of {', '.join(MODEL_DIRS)}")
    folder = MODEL_DIRS[name]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no weights in {folder}; make them with python -m led_sglang.embedded.train")
    return str(folder)
