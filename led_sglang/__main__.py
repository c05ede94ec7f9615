"""`led-sglang COMMAND ...`, also `python -m led_sglang`: the package's commands under one name.

    led-sglang serve                       the embedded model, no GPU needed; --help for all arguments
    led-sglang trace "What is 3 + 4?"      one question with and without LED, every token
    led-sglang check --url http://HOST     is LED on in that server?

Each is a module that can be run by itself, and `led-sglang COMMAND --help` is its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from led_sglang import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS = {  # name: module whose `main(argv)` it is, meaning
    "serve": ("led_sglang.serving.front", "an OpenAI-compatible server with LED, its log in a file"),
    "trace": ("led_sglang.trace", "one question with and without LED, in the terminal"),
    "analysis": ("led_sglang.analysis", "what each layer of a model knows: where LED can explore"),
    "evals": ("led_sglang.evals.__main__", "accuracy of a server's methods, with tables and figures"),
    "check": ("led_sglang.cli.check", "would this start? and with --url: is LED on in that server?"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command that the first argument names."""
    commands = "\n".join(f"  {name:<10} {words}" for name, (_, words) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="led-sglang",
        usage="led-sglang COMMAND ...",
        description=__doc__,
        epilog=f"commands:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"led_sglang {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    given = list(sys.argv[1:] if argv is None else argv)
    command = parser.parse_args(given[:1]).command
    return int(import_module(COMMANDS[command][0]).main(given[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
