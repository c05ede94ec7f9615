"""LED's own arguments: on the command line, and in the YAML that `--config` names."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from led_sglang import __version__
from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import FIELDS, METHODS, PHASES
from led_sglang.config.server import FORMS, ServerConfig

# "fused" and "compiled" are older spellings of "torch" and "numba".
BACKENDS = ("auto", "numba", "torch", "triton", "compiled", "fused", "eager", "reference")


def build_parser() -> argparse.ArgumentParser:
    """The LED arguments and `--config`; all others are SGLang's."""
    default = ServerConfig()
    parser = argparse.ArgumentParser(
        prog="python -m led_sglang.launch",
        description="Serve a model with Latent Exploration Decoding on stock SGLang. All arguments of "
        "`python -m sglang.launch_server` are accepted too (--help-sglang lists them). Where no model is named the "
        "embedded model is served.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("LED").add_argument
    add(
        "--led",
        choices=("on", "off", "disabled"),
        default="on",
        help="on: requests are decoded with LED unless they say otherwise; off: only requests that ask; disabled: "
        "stock SGLang, no hook is installed (default: on)",
    )
    add("--led-depth", type=int, default=None, help=_default_of("depth"))
    add("--led-max-depth", type=int, default=None, help="largest depth a request may ask; layers captured for it")
    add("--led-top-k", type=int, default=default.top_k, help=_default_of("top_k"))
    add("--led-max-top-k", type=int, default=default.max_top_k, help="largest k a request may ask (default: 256)")
    add("--led-phase", choices=PHASES, default=default.phase, help=_default_of("phase"))
    add("--led-think-open", default=None, help="marker that opens the thinking phase (default: the reasoning parser's)")
    add("--led-think-close", default=None, help="marker that closes it")
    add(
        "--led-methods",
        type=_methods,
        default=default.methods,
        help=f"methods a request may choose, comma-separated, of {', '.join(METHODS)} (default: led); each captures "
        "the layers it needs",
    )
    add("--led-backend", choices=BACKENDS, default="auto", help="implementation of the LED step (default: auto)")
    add(
        "--led-form",
        choices=FORMS,
        default="auto",
        help="when latent rows go through the LM head: one_pass: in its own weight pass; coin_first: exploring rows "
        "alone, in a second pass; auto: by batch size (default: auto)",
    )
    add(
        "--led-bench-explore-rate",
        type=float,
        default=None,
        help="benchmarks with random weights only: this share of the tokens explores, whatever the model says",
    )
    add("--check", action="store_true", help="do all that a start does before it loads weights, refuse as it, and exit")
    add("--config", action="append", help="YAML file with arguments, LED's or SGLang's; the command line wins")
    add("--help-sglang", action="store_true", help="print SGLang's own arguments and exit")
    add("--version", action="version", version=f"led_sglang {__version__}")
    return parser


def _default_of(key: str) -> str:
    """The help of an argument that is the default of a request's parameter."""
    row = FIELDS[key]
    return f"what requests that say nothing have: {row.meaning.replace('`', '')} (default: {row.default})"


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
    config = ServerConfig(
        default_on=options.led == "on",
        depth=depth,
        max_depth=max_depth,
        top_k=options.led_top_k,
        max_top_k=options.led_max_top_k,
        phase=options.led_phase,
        think_open=options.led_think_open,
        think_close=options.led_think_close,
        backend=options.led_backend,
        form=options.led_form,
        bench_explore_rate=options.led_bench_explore_rate,
        methods=options.led_methods,
    )
    config.check()
    return config


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for method in methods:
        if method not in METHODS:
            raise argparse.ArgumentTypeError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    return tuple(method for method in dict.fromkeys(("led", *methods)) if method != "none")


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
        is_text = action.type is _methods or action.dest in ("led_think_open", "led_think_close")
        if is_text and not isinstance(value, str):
            parser.error(f"{key} in --config must be text, got {value!r}")
        parser.set_defaults(**{action.dest: _methods_of_config(parser, value) if action.type is _methods else value})


def _methods_of_config(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    try:
        return _methods(text)
    except argparse.ArgumentTypeError as error:
        parser.error(f"led-methods in --config: {error}")
