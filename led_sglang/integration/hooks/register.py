"""Registration of the hooks table with SGLang's registry."""

from importlib.metadata import version

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from led_sglang.integration.hooks.guard import Guarded
from led_sglang.integration.hooks.table import HOOK_TARGETS, hooks_of

HANDLERS: dict[str, Guarded] = {target: Guarded(target, spec) for target, spec in HOOK_TARGETS.items()}


def register_hooks() -> None:
    """Register every hook with SGLang's registry; `HookRegistry.apply_hooks` patches the targets afterwards."""
    for target, spec in hooks_of(version("sglang")).items():
        HookRegistry.register(target, HANDLERS[target], HookType(spec.kind))
