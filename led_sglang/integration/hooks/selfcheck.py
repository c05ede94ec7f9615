"""SGLang logs and swallows a hook that could not be applied; we do not. Run where an exception stops the server."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from led_sglang.integration.hooks.table import HookTarget, hooks_of, numbers_of

OLDEST, FIRST_UNSUPPORTED = (0, 5, 17), (0, 6)  # as pyproject.toml's dependency says, which pip may be told to ignore


class HookError(RuntimeError):
    """A hook is missing or its target is not the function it was written for."""


def check_hook(target: str, spec: HookTarget, has_handler: bool = True) -> str | None:
    """What is wrong with one hook; None if it is in place and its target has the expected parameters.

    has_handler: the handler is imported too, which belongs to the hook's own process.
    """
    from led_sglang.integration.hooks.register import HANDLERS

    try:
        function = pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        return f"the target is gone ({error})"
    hook, layers = HANDLERS[target], _layers(function)
    if not any(_holds(layer, hook) for layer in layers):
        return "the hook is not in place"
    if has_handler:
        try:
            _ = hook.handler
        except Exception as error:  # whatever its module raises
            return f"its handler cannot be imported ({type(error).__name__}: {error})"
    found = tuple(inspect.signature(layers[-1]).parameters)
    if found != spec.parameters:
        return f"expected parameters ({', '.join(spec.parameters)}), found ({', '.join(found)})"
    return None


def verify_release(found: str) -> None:
    """Raise HookError for a release of SGLang outside of what the package depends on."""
    if not OLDEST <= numbers_of(found) < FIRST_UNSUPPORTED:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, FIRST_UNSUPPORTED))
        raise HookError(
            f"LED cannot run on SGLang {found}: it supports {low} and newer below {high} (docs/compat.md). Install "
            f"one of these or start with --led disabled."
        )


def verify(process: str, is_own: bool = True) -> None:
    """Raise HookError naming every faulty target and the SGLang version. process: "scheduler" or "http".

    is_own: this is that process. If not, its handlers are not imported here.
    """
    release = version("sglang")
    verify_release(release)
    faults = {}
    for target, spec in hooks_of(release).items():
        if spec.process == process and (fault := check_hook(target, spec, is_own)):
            faults[target] = fault
    if faults:
        lines = "\n".join(f"  {target}: {fault}" for target, fault in faults.items())
        raise HookError(
            f"LED cannot run on SGLang {release}: its hooks do not fit.\n{lines}\n"
            f"Install a supported release (docs/compat.md) or start with --led disabled."
        )


def _layers(function: Any) -> list[Callable[..., Any]]:
    """The wrapper chain, outermost first, down to the original function."""
    layers = [function]
    while hasattr(layers[-1], "__wrapped__") and layers[-1].__closure__ and _is_wrapper(layers[-1]):
        layers.append(layers[-1].__wrapped__)
    return layers


def _is_wrapper(function: Any) -> bool:
    return function.__code__.co_qualname.startswith("_wrap_fn.")


def _holds(layer: Any, handler: Callable[..., Any]) -> bool:
    cells = getattr(layer, "__closure__", None) or ()
    return any(cell.cell_contents is handler for cell in cells)
