"""Entry of every scheduler process: no scheduler starts decoding plainly because a hook was lost."""

from typing import Any

from led_sglang.serving.imports import collector_paused


def run_scheduler_process(*args: object, **kwargs: object) -> Any:
    """SGLang's own entry, after the hooks were verified. Raises HookError."""
    with collector_paused():
        from sglang.srt.managers.scheduler import run_scheduler_process as original
        from sglang.srt.plugins import load_plugins

        from led_sglang.integration.hooks import selfcheck

        load_plugins()
    selfcheck.verify("scheduler")
    return original(*args, **kwargs)
