"""What a start of the server costs besides loading weights: imports, in each of its processes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """For imports: they make more than a million objects that stay, and the collector would walk them over and over.

    It is off inside, and never walks what exists at the end (`gc.freeze`), or its first walk afterwards would cost half
    of what was saved. A fifth of the CPU time of importing SGLang (docs/log.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
