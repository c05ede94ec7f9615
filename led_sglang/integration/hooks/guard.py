"""A fault of ours in what the engine calls stays ours: the batch keeps the engine's tokens, and it is counted and told.

Every hook goes through `Guarded`. What its handler was about to do is undone or finished by `recover`, so that the
engine gets what it would get without LED. Faults of the start, before anybody is served, are raised.
"""

import sys
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch

from led_sglang.config.checks import LedParamError
from led_sglang.integration.http.faults import LedFault
from led_sglang.integration.scheduler.ranks import RankDivergence

ON_PURPOSE = (RankDivergence, LedParamError, LedFault)  # raised for the engine or the client to see


class Call:
    """The original function of a hook "around" it, and what became of it."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self.result: Any = None
        self.has_returned = False
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self.result = self._original(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self.has_returned = True
        return self.result

    def once(self, *args: Any, **kwargs: Any) -> Any:
        """Its result; it is called if the handler has not come to that."""
        return self.result if self.has_returned else self(*args, **kwargs)


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_nobodys(forward_batch: Any) -> bool:
    """The engine's own batch, of a start: a warm-up or the capture of a graph."""
    return getattr(forward_batch, "sampling_info", None) is None or is_capturing()


def never(*args: Any, **kwargs: Any) -> bool:
    return False


def always(*args: Any, **kwargs: Any) -> bool:
    return True


def call_original(original: Call, *args: Any, **kwargs: Any) -> Any:
    return original.once(*args, **kwargs)


def change_nothing(*args: Any, **kwargs: Any) -> None:
    """A hook "before" or "after" leaves arguments and result as they are."""


def refuse(*args: Any, **kwargs: Any) -> None:
    """In a function of one request: what was asked of LED would not be done, so it is an error 500."""
    error = sys.exc_info()[1]
    assert error is not None
    raise LedFault(error) from error


class Guarded:
    """A handler as SGLang's hook registry calls it: `handler`'s signature and result."""

    def __init__(
        self,
        target: str,
        handler: Callable[..., Any],
        note: Callable[[str], None],
        recover: Callable[..., Any],
        is_start: Callable[..., bool] = never,
        is_around: bool = False,
    ) -> None:
        """The functions have the arguments of `handler`, whose original is a `Call` where the hook is "around" it.

        note: called with `target` in the `except` block; raises RankDivergence where other ranks wait for this one.
        recover: called after a fault, and its result is the handler's.
        is_start: nobody is served yet, so the fault is raised.
        """
        update_wrapper(self, handler)
        self.target = target
        self.handler = handler
        self.note = note
        self.recover = recover
        self.is_start = is_start
        self.is_around = is_around

    @property
    def is_start_only(self) -> bool:
        """It is never called while serving."""
        return self.is_start is always

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(args[0]) if self.is_around else None
        if call is not None:
            args = (call, *args[1:])
        try:
            return self.handler(*args, **kwargs)
        except ON_PURPOSE:
            raise
        except Exception:
            if call is not None and call.error is not None:
                raise  # the engine's own
            if self.is_start(*args, **kwargs):
                raise
            self.note(self.target)
            return self.recover(*args, **kwargs)
