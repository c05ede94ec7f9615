"""`python -m led_sglang.launch`: SGLang's server with LED. Every SGLang argument works, plus the --led-* ones.

Also from Python, for SGLang's offline Engine: `led_sglang.launch.enable(model_path)` before `sglang.Engine(...)`.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import ServerConfig, default_host, export_config
from led_sglang.serving.announcement import announce
from led_sglang.serving.command_line import server_config_of, split_arguments
from led_sglang.serving.imports import collector_paused
from led_sglang.serving.ports import refuse_taken

__all__ = ["enable", "main", "prepare", "server_arguments"]

EMBEDDED_NAME = "led-embedded"
EMBEDDED_DEPTH = 12


def prepare(config: ServerConfig, server_args: Any) -> ServerConfig:
    """The part of a start before the weights: resolves `config` against the model, exports it, verifies hooks.

    Raises LedParamError, CaptureError, EngineRefusal or HookError: the server must not start.
    """
    from led_sglang.integration import support
    from led_sglang.integration.hooks import selfcheck

    resolved = support.resolve(config, server_args)
    export_config(resolved)
    selfcheck.verify("http")
    selfcheck.verify("scheduler", is_own=False)
    return resolved


def enable(model_path: str, config: ServerConfig | None = None, **server_args: Any) -> ServerConfig:
    """Switch LED on for `sglang.Engine(model_path=model_path, **server_args)` made later in this process.

    Raises as `prepare`. Adds no default: an argument that is not given has SGLang's.
    """
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    from led_sglang.integration.hooks.entry import run_scheduler_process

    export_config(config or ServerConfig())
    load_plugins()
    _register_late()
    Engine.run_scheduler_process_func = staticmethod(run_scheduler_process)
    return prepare(config or ServerConfig(), ServerArgs(model_path=model_path, **server_args))


def server_arguments(options: Namespace, rest: Sequence[str]) -> tuple[Any, bool]:
    """SGLang's ServerArgs of what `split_arguments` returned, and whether they are of the embedded model.

    SGLang's own parser reads the YAML file, then the command line. LED's defaults fill in the fields that neither of
    them names, in any spelling; SGLang decides the rest. Raises SystemExit.
    """
    with collector_paused():
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.server_args import prepare_server_args

        from led_sglang.integration.hooks.user_arguments import merged, said

        if options.help_sglang:
            prepare_server_args(["--help"])
        argv = merged(rest, options.settings)
        fields = said(argv)
        is_embedded = "model_path" not in fields
        defaults = _defaults(is_embedded)
        unsaid = [word for field, flag in defaults.items() if field not in fields for word in flag]
        return prepare_server_args([*unsaid, *argv]), is_embedded


def _defaults(is_embedded: bool) -> dict[str, tuple[str, str]]:
    """The launcher's own defaults, by field of ServerArgs."""
    host = default_host()
    defaults = {} if host is None else {"host": ("--host", host)}
    if is_embedded:
        from led_sglang.embedded import MODEL_DIR

        defaults["model_path"] = ("--model-path", str(MODEL_DIR))
        defaults["served_model_name"] = ("--served-model-name", EMBEDDED_NAME)
        defaults["dtype"] = ("--dtype", "float32")
    return defaults


def main(argv: Sequence[str] | None = None) -> int:
    options, rest = split_arguments(sys.argv[1:] if argv is None else argv)
    try:
        return _serve(options, rest)
    except LedParamError as error:
        print(f"led_sglang: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__module__.startswith("led_sglang."):
            print(f"led_sglang: {error}", file=sys.stderr)
            return 2
        raise


def _serve(options: Namespace, rest: list[str]) -> int:
    with_led = options.led != "disabled"
    export_config(server_config_of(options) if with_led else None)  # before plugins are loaded: LED's reads it
    server_args, is_embedded = server_arguments(options, rest)
    if is_embedded:
        # For a model this small several threads spend more time in synchronisation than in computation.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    refuse_taken(server_args.host, server_args.port)
    with collector_paused():
        if with_led:  # a check refuses what a start would: it runs the same code up to here
            resolved = prepare(server_config_of(options, EMBEDDED_DEPTH if is_embedded else None), server_args)
        elif options.check:
            from led_sglang.integration.support import accept

            accept(server_args)
    if not options.check:
        _announce(server_args, resolved if with_led else None)
        return _run(server_args, with_led)
    captured = f", layers captured: {resolved.num_captured}, markers: {resolved.think_open!r}" if with_led else ""
    print(f"led_sglang: ok, model: {server_args.model_path}{captured}")
    if with_led:
        from led_sglang.integration.memory import memory_of_check

        plan, short = memory_of_check(resolved, server_args)
        print(f"led_sglang: LED takes {plan.text()}")
        if not plan.has_graphs:
            print("led_sglang: without CUDA graphs, which a start on this machine would not capture")
        if short is not None:
            print(f"led_sglang: warning: {short}", file=sys.stderr)
    return 0


def _announce(server_args: Any, config: ServerConfig | None) -> None:
    """What a front in the foreground shows of this server; config: None for stock SGLang."""
    scheme = "https" if server_args.ssl_keyfile else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(server_args.host, server_args.host)
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{server_args.port}"
    defaults = None
    if config is not None:
        mode = "on unless a request says otherwise" if config.default_on else "off unless a request asks"
        defaults = f"{mode}; depth {config.depth}, k {config.top_k}, phase {config.phase}"
    announce(
        url=address if server_args.node_rank == 0 else None,
        model=server_args.served_model_name or server_args.model_path,
        methods=None if config is None else [name for name in config.methods if name != "none"],
        defaults=defaults,
        has_key=server_args.api_key is not None,
    )


def _run(server_args: Any, with_led: bool) -> int:
    from sglang.srt.utils import kill_process_tree

    try:
        if with_led:
            from sglang.srt.entrypoints import http_server

            from led_sglang.integration.hooks import entry
            from led_sglang.integration.http import app
            from led_sglang.integration.http.workers.start import for_workers

            app.attach(http_server.app)
            with for_workers():
                http_server.launch_server(server_args, run_scheduler_process_func=entry.run_scheduler_process)
        else:
            from sglang.launch_server import run_server

            run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0


def _import_what_all_need() -> None:
    """The imports that every process of SGLang needs."""
    with collector_paused():
        import sglang.srt.managers.detokenizer_manager  # noqa: F401


def _register_late() -> None:
    """Register and apply the hooks now, where SGLang loaded its plugins before LED was switched on."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from led_sglang.integration.hooks.register import register_hooks
    from led_sglang.integration.hooks.table import HOOK_TARGETS

    if not any(target in HookRegistry._hooks for target in HOOK_TARGETS):
        register_hooks()
        HookRegistry.apply_hooks()


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # multiprocessing's name for it in a process that SGLang spawned
    _import_what_all_need()
