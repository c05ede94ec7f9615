"""What a forward of the start really does, seen from outside of the capture: layers, norms, and the LM head's input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from sglang.srt.layers.logits_processor import LogitsProcessor
from torch import Tensor, nn

from led_sglang.integration.scheduler.latents.decoder import Parts, flat, forward_batch_of, read_output

Forward = Callable[..., Any]


class Norm:
    """A module's `forward` as (N, H) -> (N, H): some return a tuple."""

    def __init__(self, name: str, forward: Forward) -> None:
        self.name = name
        self._forward = forward

    def __call__(self, hidden: Tensor) -> Tensor:
        return first_of(self._forward(hidden))


@dataclass
class Seen:
    """One forward: the layers' outputs by 0-based index, and what came after the last of them."""

    order: list[int] = field(default_factory=list)
    layers: dict[int, Parts] = field(default_factory=dict)
    norms: list[tuple[Norm, Tensor]] = field(default_factory=list)  # and what each gave, (T, H)
    head_input: Tensor | None = None  # (T, H)

    def layer(self, index: int, ending: str) -> Tensor:
        """(T, H): the residual stream after a layer."""
        first, *rest = self.layers[index][ending]
        return sum(rest, first.clone())


@contextmanager
def watched(model: nn.Module, decoder: nn.ModuleList, num_here: int) -> Iterator[Seen]:
    """Forwards inside the block are seen. What is watched are `forward`s of instances, which no module hook misses.

    num_here: how many of the decoder's layers this process runs.
    """
    seen = Seen()
    changed: list[tuple[nn.Module, Forward | None]] = []

    def watch(module: nn.Module, see: Callable[..., Any]) -> None:
        original = module.forward
        changed.append((module, vars(module).get("forward")))

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return see(original, args, kwargs)

        setattr(module, "forward", forward)  # noqa: B010, a module's attributes are typed as tensors

    def layer(index: int) -> Callable[..., Any]:
        def see(original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            parts, output = read_output(original(*args, **kwargs), forward_batch_of(args, kwargs))
            seen.order.append(index)
            seen.layers[index] = {ending: tuple(part.clone() for part in whole) for ending, whole in parts.items()}
            return output

        return see

    def norm(name: str) -> Callable[..., Any]:
        def see(original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            output = original(*args, **kwargs)
            if len(seen.order) == num_here:
                seen.norms.append((Norm(name, original), flat(first_of(output)).clone()))
            return output

        return see

    def logits_processor(original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[1]
        seen.head_input = flat(hidden).clone()
        return original(*args, **kwargs)

    inside = {id(module) for each in decoder for module in each.modules()}
    for index, each in enumerate(decoder):
        watch(each, layer(index))
    for name, module in model.named_modules():
        if isinstance(module, LogitsProcessor):
            watch(module, logits_processor)
        elif id(module) not in inside and "norm" in type(module).__name__.lower():
            watch(module, norm(name))
    try:
        yield seen
    finally:
        for module, before in reversed(changed):
            if before is None:
                del module.forward
            else:
                setattr(module, "forward", before)  # noqa: B010


def first_of(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found
