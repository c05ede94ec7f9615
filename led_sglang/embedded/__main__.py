"""Prints the directory of an embedded model: `--model-path $(python -m led_sglang.embedded sft)`."""

import argparse
import sys

from led_sglang.command import guarded
from led_sglang.embedded import MODEL_DIRS, model_path


def command(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m led_sglang.embedded", description=__doc__)
    parser.add_argument(
        "name", choices=tuple(MODEL_DIRS), help="the server's default is rl; sft is what it was made from"
    )
    print(model_path(parser.parse_args(argv).name))


if __name__ == "__main__":
    sys.exit(guarded("embedded", lambda: command(None)))
