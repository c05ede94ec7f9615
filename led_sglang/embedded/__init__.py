"""The small reasoning model served by default; importing this loads neither torch nor transformers."""

from pathlib import Path

__all__ = ["MODEL_DIR", "model_path"]

MODEL_DIR = Path(__file__).resolve().parent / "model"


def model_path() -> str:
    """The directory to give to `--model-path`. Raises FileNotFoundError where the package came without the weights."""
    if not (MODEL_DIR / "model.safetensors").is_file():
        raise FileNotFoundError(f"no weights in {MODEL_DIR}; make them with python -m training.train")
    return str(MODEL_DIR)
