"""numba, as this project compiles with it."""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["jit"]


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code on the first call, kept for the next process where it can be.

    No fastmath: where sums may be reordered, LLVM orders them by what it happens to inline, and machine code that was
    compiled just now rounds differently from the same function out of numba's cache. Two servers would disagree.
    """
    try:
        kept: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to keep the machine code: compiled anew in each process, in a few seconds
        kept = numba.njit(nogil=True, error_model="numpy")(function)
    return kept
