"""`python -m led_sglang.launch`: SGLang's server with LED. Every SGLang argument works, plus the --led-* ones.

Also from Python, for SGLang's offline Engine: `led_sglang.launch.enable(model_path)` before `sglang.Engine(...)`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from led_sglang import __version__
from led_sglang.params import FORMS, METHODS, PHASES, LedParamError, ServerConfig, export_config
from led_sglang.ports import refuse_taken
from led_sglang.startup import collector_paused

EMBEDDED_NAME = "led-embedded"
EMBEDDED_DEPTH = 12
SETTINGS_PREFIX = "led-sglang-settings-"
BACKENDS = ("auto", "reference", "eager", "fused", "compiled", "triton")


def build_parser() -> argparse.ArgumentParser:
    """The LED arguments; all others are SGLang's."""
    default = ServerConfig()
    parser = argparse.ArgumentParser(
        prog="python -m led_sglang.launch",
        description="Serve a model with Latent Exploration Decoding on stock SGLang. All arguments of "
        "`python -m sglang.launch_server` are accepted too (--help-sglang lists them). Without --model-path the "
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
    add("--led-depth", type=int, default=None, help=f"default exploration depth d (default: {default.depth})")
    add("--led-max-depth", type=int, default=None, help="largest depth a request may ask; layers captured for it")
    add("--led-top-k", type=int, default=default.top_k, help=f"default candidates k (default: {default.top_k})")
    add("--led-max-top-k", type=int, default=default.max_top_k, help="largest k a request may ask (default: 256)")
    add("--led-phase", choices=PHASES, default=default.phase, help="explore while thinking, or always (default: think)")
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
    add("--check", action="store_true", help="parse, verify hooks and model support, load no weights, exit")
    add("--help-sglang", action="store_true", help="print SGLang's own arguments and exit")
    add("--version", action="version", version=f"led_sglang {__version__}")
    return parser


def split_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """LED's arguments and SGLang's, with LED keys taken out of a `--config` YAML; the command line wins."""
    parser = build_parser()
    argv = list(argv)
    path = _config_path(argv)
    if path is not None:
        settings = _read_yaml(path)
        ours = {key: value for key, value in settings.items() if key == "led" or key.startswith("led-")}
        _set_defaults(parser, ours)
        argv = _without_config(argv) + _config_for_sglang({k: v for k, v in settings.items() if k not in ours})
    return parser.parse_known_args(argv)


def server_config_of(options: argparse.Namespace, default_depth: int | None = None) -> ServerConfig:
    """The ServerConfig that the LED arguments describe, before the model is known. Raises LedParamError."""
    depth, max_depth = options.led_depth, options.led_max_depth
    if depth is None:  # the paper's, unless fewer layers are captured
        depth = ServerConfig().depth if max_depth is None else max(1, min(ServerConfig().depth, max_depth))
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


def prepare(config: ServerConfig, server_args: Any) -> ServerConfig:
    """Resolve `config` against the model, export it, verify hooks and model support.

    Raises LedParamError, CaptureError or HookError: the server must not start.
    """
    from led_sglang.integration import selfcheck, support

    resolved = support.resolve(config, server_args)
    export_config(resolved)
    selfcheck.verify("http")
    selfcheck.verify("scheduler")
    return resolved


def enable(model_path: str, config: ServerConfig | None = None, **server_args: Any) -> ServerConfig:
    """Switch LED on for `sglang.Engine(model_path=model_path, **server_args)` made later in this process."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    from led_sglang.integration.entry import run_scheduler_process

    export_config(config or ServerConfig())
    load_plugins()
    _register_late()
    Engine.run_scheduler_process_func = staticmethod(run_scheduler_process)
    return prepare(config or ServerConfig(), ServerArgs(model_path=model_path, **server_args))


def main(argv: Sequence[str] | None = None) -> int:
    options, rest = split_arguments(sys.argv[1:] if argv is None else argv)
    if options.help_sglang:
        rest = ["--help"]
    default_depth = None
    if not options.help_sglang and not any(arg.split("=")[0] in ("--model-path", "--model") for arg in rest):
        rest, default_depth = _embedded_arguments() + rest, EMBEDDED_DEPTH
        # For a model this small: more threads wait for each other longer than they compute, all the more on a busy CPU.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        return _serve(options, rest, default_depth)
    except LedParamError as error:
        print(f"led_sglang: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__module__.startswith("led_sglang."):
            print(f"led_sglang: {error}", file=sys.stderr)
            return 2
        raise


def _serve(options: argparse.Namespace, rest: list[str], default_depth: int | None) -> int:
    if options.led != "disabled":
        config = server_config_of(options, default_depth)
        export_config(config)

    with collector_paused():
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.server_args import prepare_server_args

        server_args = prepare_server_args(rest)
    _remove_settings(rest)
    if not options.check:
        refuse_taken(server_args.host, server_args.port)
    if options.led == "disabled":
        return 0 if options.check else _run(server_args, with_led=False)
    if hasattr(server_args, "resolve_once"):
        server_args.resolve_once()
    with collector_paused():
        resolved = prepare(config, server_args)
    if options.check:
        print(f"led_sglang: ok, layers captured: {resolved.num_captured}, markers: {resolved.think_open!r}")
        return 0
    return _run(server_args, with_led=True)


def _run(server_args: Any, with_led: bool) -> int:
    from sglang.srt.utils import kill_process_tree

    try:
        if with_led:
            from sglang.srt.entrypoints import http_server

            from led_sglang.integration import entry, http

            http.attach(http_server.app)
            http_server.launch_server(server_args, run_scheduler_process_func=entry.run_scheduler_process)
        else:
            from sglang.launch_server import run_server

            run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0


def _import_what_all_need() -> None:
    """At least this is what a process that SGLang spawns is about to import."""
    with collector_paused():
        import sglang.srt.managers.detokenizer_manager  # noqa: F401


def _register_late() -> None:
    """Where SGLang loaded its plugins before LED was switched on, register and apply now."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from led_sglang.integration.hooks import register_hooks
    from led_sglang.integration.targets import HOOK_TARGETS

    if not any(target in HookRegistry._hooks for target in HOOK_TARGETS):
        register_hooks()
        HookRegistry.apply_hooks()


def _embedded_arguments() -> list[str]:
    from led_sglang.embedded import MODEL_DIR

    return ["--model-path", str(MODEL_DIR), "--served-model-name", EMBEDDED_NAME, "--dtype", "float32"]


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for method in methods:
        if method not in METHODS:
            raise argparse.ArgumentTypeError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    return tuple(method for method in dict.fromkeys(("led", *methods)) if method != "none")


def _config_path(argv: list[str]) -> str | None:
    for i, arg in enumerate(argv):
        if arg == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if arg.startswith("--config="):
            return arg.split("=", 1)[1]
    return None


def _without_config(argv: list[str]) -> list[str]:
    kept, skip = [], False
    for arg in argv:
        if skip or arg == "--config" or arg.startswith("--config="):
            skip = arg == "--config"
            continue
        kept.append(arg)
    return kept


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


def _remove_settings(rest: list[str]) -> None:
    """SGLang has read the file that `_config_for_sglang` wrote."""
    path = _config_path(rest)
    if path is not None and Path(path).name.startswith(SETTINGS_PREFIX):
        Path(path).unlink(missing_ok=True)


def _config_for_sglang(settings: dict[str, Any]) -> list[str]:
    if not settings:
        return []
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=SETTINGS_PREFIX, delete=False) as file:
        yaml.safe_dump(settings, file)
    return ["--config", file.name]


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # multiprocessing's name for it in a process that SGLang spawned
    _import_what_all_need()
