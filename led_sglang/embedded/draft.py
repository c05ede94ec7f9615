"""A draft of the embedded model for speculative decoding (STANDALONE): seven of its twelve layers, untrained.

    python -m led_sglang.embedded.draft --out DIR
    python -m led_sglang.launch --speculative-algorithm STANDALONE --speculative-draft-model-path DIR

Which layers, and what others reach: docs/embedded.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from led_sglang.cli import files
from led_sglang.cli.endings import guarded
from led_sglang.embedded import model_path

__all__ = ["LAYERS", "main", "save"]

LAYERS = (0, 1, 2, 3, 4, 10, 11)
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def save(out: Path) -> Path:
    """Write the draft's checkpoint into the folder `out`, and return it. Raises FileNotFoundError, OSError."""
    from safetensors.numpy import load_file, save_file

    model = Path(model_path())
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": len(LAYERS), "layer_types": [config["layer_types"][layer] for layer in LAYERS]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    for name in COPIED:
        shutil.copyfile(model / name, out / name)
    weights = {_renamed(name): weight for name, weight in load_file(model / "model.safetensors").items()}
    save_file({name: weight for name, weight in weights.items() if name}, out / "model.safetensors", {"format": "pt"})
    return out


def _renamed(name: str) -> str:
    """A weight's name in the draft, "" of a layer that it does not have."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    if found is None:
        return name
    layer = int(found[1])
    return f"model.layers.{LAYERS.index(layer)}.{name[found.end() :]}" if layer in LAYERS else ""


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    parser = argparse.ArgumentParser(description="write a draft model of the embedded model")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(argv).out
    files.check_folder(out)
    print(save(out))


def main(argv: list[str] | None = None) -> int:
    return guarded("draft", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
