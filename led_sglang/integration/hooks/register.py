"""Registration of the hooks table with SGLang's registry."""

from importlib.metadata import version

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from led_sglang.integration.hooks.guard import Guarded
from led_sglang.integration.hooks.table import HOOK_TARGETS

HANDLERS: dict[str, Guarded] = {target: Guarded(target, spec) for target, spec in HOOK_TARGETS.items()}


def register_hooks() -> None:
    """Register every hook with SGLang's registry; `HookRegistry.apply_hooks` patches the targets afterwards."""
    release = version("sglang")
    for target, spec in HOOK_TARGETS.items():
        if not spec.is_in(release):
            continue
        HookRegistry.register(target, HANDLERS[target], HookType(spec.kind))
