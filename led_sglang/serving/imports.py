"""What a start of the server costs besides loading weights: imports, in each of its processes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Garbage collection off during imports, which make more than a million permanent objects.

    `gc.freeze` at the end keeps them out of later collections; the first of those would cost half of what was saved.
    Saves a fifth of the CPU time of importing SGLang (docs/log.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
