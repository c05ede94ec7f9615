"""Prints the directory of an embedded model: `--model-path $(python -m led_sglang.embedded sft)`."""

import argparse

from led_sglang.embedded import MODEL_DIRS, model_path

parser = argparse.ArgumentParser(prog="python -m led_sglang.embedded", description=__doc__)
parser.add_argument("name", choices=tuple(MODEL_DIRS), help="the server's default is rl; sft is what it was made from")
print(model_path(parser.parse_args().name))
