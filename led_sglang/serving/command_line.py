"""LED's own arguments: on the command line, and in the YAML that `--config` names."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from led_sglang import __version__
from led_sglang.config.arguments import ARGUMENTS, SWITCH, Argument
from led_sglang.config.checks import LedParamError
from led_sglang.config.legal import Choice, Choices, Integer, Real, Text
from led_sglang.config.methods import METHODS
from led_sglang.config.server import ServerConfig

__all__ = ["EXAMPLES", "build_parser", "server_config_of", "split_arguments"]


EXAMPLES = """\
python -m led_sglang.launch                                          # the embedded model, no GPU needed
python -m led_sglang.launch --model-path Qwen/Qwen3-4B-Thinking-2507 --reasoning-parser qwen3
python -m led_sglang.launch --config server_configs/qwq-32b-led.yaml --led off   # only requests that ask for LED
"""


class _Parser(argparse.ArgumentParser):
    """Its help begins with examples."""

    def format_help(self) -> str:
        return f"{EXAMPLES}\n{super().format_help()}"


def build_parser() -> argparse.ArgumentParser:
    """The LED arguments and `--config`; all others are SGLang's."""
    parser = _Parser(
        prog="python -m led_sglang.launch",
        description="Serve a model with Latent Exploration Decoding on stock SGLang. All arguments of "
        "`python -m sglang.launch_server` are accepted too (--help-sglang lists them). Where no model is named the "
        "embedded model is served.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("LED").add_argument
    for argument in (SWITCH, *ARGUMENTS):
        add(argument.flag, default=argument.default, help=argument.help, **_reading(argument))
    add("--check", action="store_true", help="do all that a start does before it loads weights, refuse as it, and exit")
    add("--config", action="append", help="YAML file with arguments, LED's or SGLang's; the command line wins")
    add("--help-sglang", action="store_true", help="print SGLang's own arguments and exit")
    add("--version", action="version", version=f"led_sglang {__version__}")
    return parser


def _reading(argument: Argument) -> dict[str, Any]:
    """How argparse reads the argument's text; ranges, which may depend on the model, are `ServerConfig.check`'s."""
    legal = argument.legal
    if isinstance(legal, Choice):
        return {"choices": legal.values}
    return {"type": _TYPES[type(legal)]}


def split_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """LED's arguments, those of a `--config` YAML among them, and what the command line holds for SGLang.

    `settings` of the first is what the YAML holds for SGLang, with keys as flags are written. The command line wins.
    Raises SystemExit.
    """
    parser = build_parser()
    paths = parser.parse_known_args(argv)[0].config or []
    if len(paths) > 1:
        parser.error(f"--config is given {len(paths)} times ({', '.join(paths)}): one file only")
    settings = _read_yaml(paths[0]) if paths else {}
    ours = {key: value for key, value in settings.items() if key == "led" or key.startswith("led-")}
    _set_defaults(parser, ours)
    options, rest = parser.parse_known_args(argv)
    options.settings = {key: value for key, value in settings.items() if key not in ours}
    return options, rest


def server_config_of(options: argparse.Namespace, default_depth: int | None = None) -> ServerConfig:
    """The ServerConfig that the LED arguments describe, before the model is known. Raises LedParamError."""
    depth, max_depth = options.led_depth, options.led_max_depth
    if depth is None:  # the paper's, unless fewer layers are captured
        depth = ServerConfig().depth if max_depth is None else max(1, min(ServerConfig().depth, max_depth))
    if depth < 1:
        raise LedParamError(f"--led-depth must be an integer in [1, the model's number of layers], got {depth}")
    if max_depth is None:
        max_depth = max(depth, default_depth or 1)
    values = {argument.field: getattr(options, argument.key) for argument in ARGUMENTS}
    config = ServerConfig(**{**values, "default_on": options.led == "on", "depth": depth, "max_depth": max_depth})
    config.check()
    return config


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for method in methods:
        if method not in METHODS:
            raise argparse.ArgumentTypeError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    return tuple(method for method in dict.fromkeys(("led", *methods)) if method != "none")


_TYPES: dict[type, Callable[[str], Any]] = {Integer: int, Real: float, Text: str, Choices: _methods}


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, 2001-99-99 as a date
        raise SystemExit(f"led_sglang: --config {path}: {error}") from error
    if not isinstance(settings, dict):
        raise SystemExit(f"led_sglang: --config {path}: expected a mapping of arguments, got {type(settings).__name__}")
    return {str(key).replace("_", "-"): value for key, value in settings.items()}


def _set_defaults(parser: argparse.ArgumentParser, ours: dict[str, Any]) -> None:
    actions = {action.dest: action for action in parser._actions}
    for key, value in ours.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            known = ", ".join(sorted(d.replace("_", "-") for d in actions if d.startswith("led")))
            parser.error(f"unknown LED key {key!r} in --config; known keys: {known}")
        if isinstance(value, bool) and key == "led":  # YAML reads on and off as booleans
            value = "on" if value else "off"
        if action.type is int and (isinstance(value, bool) or not isinstance(value, int)):
            parser.error(f"{key} in --config must be an integer, got {value!r}")
        if action.choices is not None and value not in action.choices:
            parser.error(f"{key} in --config must be one of {', '.join(action.choices)}, got {value!r}")
        if action.type in (_methods, str) and not isinstance(value, str):
            parser.error(f"{key} in --config must be text, got {value!r}")
        parser.set_defaults(**{action.dest: _methods_of_config(parser, value) if action.type is _methods else value})


def _methods_of_config(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    try:
        return _methods(text)
    except argparse.ArgumentTypeError as error:
        parser.error(f"led-methods in --config: {error}")
