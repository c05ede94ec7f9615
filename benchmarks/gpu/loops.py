"""numba's stand-in: `led_sglang.ops` compiles its CPU loops with numba, and a GPU runs none of them.

So a GPU host needs no numba that works with its numpy: the loops are plain Python there, and the kit's dry run, which
runs a few of them, stays right.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _kept(*args: Any, **kwargs: Any) -> Any:
    """`njit` with and without arguments: the function as it is."""
    if args and callable(args[0]):
        return args[0]
    return lambda function: function


class FunctionCache:
    def __init__(self, function: Callable[..., Any]) -> None:
        raise RuntimeError("plain Python has no machine code to keep")


def require_loops() -> str | None:
    """See to it that `numba` can be imported. Returns why the installed one is not used; None: it is."""
    try:
        import numba  # noqa: F401
        from numba.core.caching import FunctionCache as _  # noqa: F401
    except Exception as error:  # numba refuses a numpy that is newer than itself by ImportError, old ones by others
        fault = f"{type(error).__name__}: {error}"
    else:
        return None
    for name in [name for name in sys.modules if name.split(".")[0] == "numba"]:
        del sys.modules[name]
    root, core, caching = ModuleType("numba"), ModuleType("numba.core"), ModuleType("numba.core.caching")
    vars(root).update(njit=_kept, jit=_kept, prange=range, core=core, __version__="stand-in")
    vars(core).update(caching=caching)
    vars(caching).update(FunctionCache=FunctionCache, IndexDataCacheFile=object)
    sys.modules.update({"numba": root, "numba.core": core, "numba.core.caching": caching})
    return fault
