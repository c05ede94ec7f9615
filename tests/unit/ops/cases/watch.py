"""What a step allocates, copies and launches, seen call by call."""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

V = 151936
MIB = 1 << 20


class Watch(TorchDispatchMode):
    """Peak bytes of the storages made since, and every copy that leaves the device."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: WeakSet[Any] = WeakSet()
        self.peak_bytes = 0
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, Tensor)]
        for out in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(out, Tensor):
                continue
            if out.device.type == "cpu" and any(a.device.type == "cuda" for a in inputs):
                self.copies.append(str(func))
            if not any(a.untyped_storage()._cdata == out.untyped_storage()._cdata for a in inputs):
                self.alive.add(out.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, sum(storage.nbytes() for storage in self.alive))
        return result


VIEWS = {
    "view",
    "select",
    "slice",
    "unsqueeze",
    "squeeze",
    "expand",
    "transpose",
    "permute",
    "t",
    "alias",
    "detach",
    "unbind",
    "split",
    "_unsafe_view",
}


NO_LAUNCH = VIEWS | {"empty", "new_empty", "empty_like"}


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: torch calls that compute, and Triton kernels, which are not run."""

    count = num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        self.count += name not in NO_LAUNCH
        if name not in VIEWS and isinstance(result, torch.Tensor):
            self.num_bytes += result.numel() * result.element_size()
        return result

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.count += 1

        return launch
