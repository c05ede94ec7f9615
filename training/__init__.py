"""What made the embedded models: supervised training, reinforcement learning, accuracy. Not in the wheel."""

from pathlib import Path

from led_sglang.embedded import MODEL_DIR

__all__ = ["MODEL_DIRS", "SFT_DIR"]

SFT_DIR = Path(__file__).resolve().parent / "model_sft"
# After reinforcement learning, which is served by default, and before it.
MODEL_DIRS = {"rl": MODEL_DIR, "sft": SFT_DIR}
