"""What a start of the server costs besides loading weights: imports, in each of its processes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """For imports: they make more than a million objects that stay, and the collector would walk them over and over.

    A quarter of the CPU time of importing SGLang (docs/log.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
