"""What the host may do in the middle of a step: the one question that divides the code paths, and numpy's columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch


def allows_dynamic_shapes(device: torch.device) -> bool:
    """True: rows are compacted by index, and work that no row needs is skipped; shapes depend on the data.

    False: looking would wait for the device (about 1 ms) and cannot be captured in a CUDA graph. Shapes are fixed, no
    value is read, rows that need nothing are skipped on the device or computed for nothing.
    """
    return device.type == "cpu"


class Columns:
    """Base of dataclasses of tensors. Made `of_arrays`, a field is numpy's until somebody asks for its tensor.

    The compiled loops of a CPU hand columns from one to the next, and turning one over costs as much as a loop.
    """

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], **others: Any) -> Self:
        """arrays: numpy's, by field; others: fields as they are."""
        made = object.__new__(cls)
        made.__dict__.update(others, _arrays=arrays)
        return made

    if not TYPE_CHECKING:  # a type checker would take any name for a field

        def __getattr__(self, name: str) -> Any:
            """Of a field that has no tensor yet."""
            array = self.__dict__.get("_arrays", {}).get(name)
            if array is None:
                raise AttributeError(f"{type(self).__name__} has no {name}")
            tensor = self.__dict__[name] = torch.from_numpy(array)
            return tensor

    def arrays(self, *names: str) -> tuple[Any, ...]:
        """Fields as numpy sees them. CPU only."""
        known = self.__dict__.get("_arrays", {})
        return tuple(known[name] if name in known else getattr(self, name).numpy() for name in names)

    def take(self, name: str, other: "Columns") -> None:
        """Another's field, as it is there: for an object that is still being made."""
        known = other.__dict__.get("_arrays", {})
        self.__dict__.pop(name, None)
        self.__dict__["_arrays"] = {name: known[name]} if name in known else {}
        if name not in known:
            self.__dict__[name] = other.__dict__[name]
