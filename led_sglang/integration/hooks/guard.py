"""What becomes of the engine's call where a handler of ours fails: the engine gets what it would get without LED.

Every hook goes through a `Guarded`. A fault is counted and logged, and the handler's recovery undoes or finishes what
it was about to do. Faults of a start, before any request, are raised.
"""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from led_sglang.config.checks import LedParamError
from led_sglang.integration.faults import Deliberate
from led_sglang.integration.hooks.table import HANDLER_ROOT, HookTarget

ON_PURPOSE = (Deliberate, LedParamError)  # raised for the engine or the client to see


class Call:
    """One call of a hooked function: its arguments by name, and the original where the hook is "around" it."""

    def __init__(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], original: Callable[..., Any] | None
    ) -> None:
        """names: of the target's parameters, in order, as the hooks table has them."""
        self.names = names
        self._args = args
        self._kwargs = kwargs
        self._original = original
        self.result: Any = None  # of the original: where it has returned, or the hook is "after" it
        self.has_returned = False
        self.error: BaseException | None = None  # of the original

    def __getitem__(self, name: str) -> Any:
        """An argument; None where the call leaves it to its default. Raises ValueError for no parameter's name."""
        index = self.names.index(name)
        return self._args[index] if index < len(self._args) else self._kwargs.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The original."""
        assert self._original is not None
        try:
            self.result = self._original(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self.has_returned = True
        return self.result

    def once(self, **changes: Any) -> Any:
        """The original's result; it is called, with this call's arguments but `changes`, if it has not returned yet."""
        if self.has_returned:
            return self.result
        args = [changes.pop(name, value) for name, value in zip(self.names, self._args, strict=False)]
        return self(*args, **{**self._kwargs, **changes})


def never(call: Call) -> bool:
    return False


def always(call: Call) -> bool:
    return True


def call_original(call: Call) -> Any:
    return call.once()


def change_nothing(call: Call) -> None:
    """A hook "before" or "after" leaves arguments and result as they are."""


@dataclass(frozen=True)
class Handler:
    """What a hook does, what counts its faults, what is done after one, and when it is raised instead."""

    function: Callable[..., Any]
    note: Callable[[str], None]  # called with the target in the `except` block; raises RankDivergence where ranks wait
    recover: Callable[[Call], Any]  # its result is the handler's
    is_start: Callable[[Call], bool] = never  # no request is served yet, so the fault is raised

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def handler(
    note: Callable[[str], None], recover: Callable[[Call], Any], is_start: Callable[[Call], bool] = never
) -> Callable[[Callable[..., Any]], Handler]:
    """Decorator of a function with the target's parameters, behind the original ("around") or the result ("after")."""

    def make(function: Callable[..., Any]) -> Handler:
        return Handler(function, note, recover, is_start)

    return make


class Guarded:
    """A hook of the table as SGLang's registry calls it. Its handler is imported where it is first called."""

    def __init__(self, target: str, spec: HookTarget) -> None:
        self.target = target
        self.spec = spec

    @cached_property
    def handler(self) -> Handler:
        found: Handler = pkgutil.resolve_name(f"{HANDLER_ROOT}.{self.spec.handler}")
        return found

    @property
    def is_start_only(self) -> bool:
        """It is never called while serving."""
        return self.handler.is_start is always

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kind, names = self.spec.kind, self.spec.parameters
        if kind == "around":
            call = Call(names, args[1:], kwargs, args[0])
            args = (call, *args[1:])
        else:
            call = Call(names, args if kind == "before" else args[1:], kwargs, None)
            call.result = args[0] if kind == "after" else None
        handler = self.handler
        try:
            return handler.function(*args, **kwargs)
        except ON_PURPOSE:
            raise
        except Exception:
            if call.error is not None:
                raise  # the engine's own
            if handler.is_start(call):
                raise
            handler.note(self.target)
            return handler.recover(call)
