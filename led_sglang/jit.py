"""numba, as this project compiles with it."""

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["jit"]


PACKAGE = Path(__file__).parent


@cache
def package_stamp() -> str:
    """Of the sources of this package: another where one of them was changed, added or removed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(PACKAGE.rglob("*.py")):
        found = path.stat()
        digest.update(f"{path.relative_to(PACKAGE)} {found.st_mtime_ns} {found.st_size}\n".encode())
    return digest.hexdigest()


class SharedCache(FunctionCache):
    """numba's cache of machine code, for several processes that start at the same time.

    numba numbers the files of a function's signatures in an index that it reads, then writes. Two processes that keep
    different signatures at the same moment may take the same number, and from then on one signature runs the code of
    the other, which misreads its memory. Here one process at a time reads or writes a function's files.

    numba compiles anew where the file of a function has changed, and does not look at what the function calls or reads
    in other files. Here the stamp covers all of the package.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        key = (self._impl.locator.get_source_stamp(), package_stamp())
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, key)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._alone():
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with self._alone():
            super().save_overload(sig, data)

    def _alone(self) -> filelock.BaseFileLock:
        self._impl.locator.ensure_cache_path()
        return filelock.FileLock(Path(self.cache_path) / f"{self._impl.filename_base}.lock")


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code on the first call, kept for the next process where it can be.

    No fastmath: where sums may be reordered, LLVM orders them by what it happens to inline, and machine code that was
    compiled just now rounds differently from the same function out of numba's cache. Two servers would disagree.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    # RuntimeError: nowhere to keep the machine code, which each process then compiles anew, in a few seconds
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = SharedCache(function)  # what `cache=True` does with FunctionCache
    return dispatcher
