"""What a start finds out on the real model, dtype, ranks and graphs, before a request is taken."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.decoder import WAY_OUT, Parts, flat, forward_batch_of, read_output
from led_sglang.integration.scheduler.latents.start_run import StartRun, prepare_eager

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from led_sglang.integration.scheduler.latents.capture import Capture

logger = logging.getLogger(__name__)

NORM_LIMITS = {torch.float32: 1e-4, torch.float64: 1e-4}  # right: 0; wrong: 0.126 and more
HALF_NORM_LIMIT = 0.03  # bfloat16 and float16: right up to 0.0075, wrong 0.126 and more


def norm_limit(dtype: torch.dtype) -> float:
    return NORM_LIMITS.get(dtype, HALF_NORM_LIMIT)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected magnitude; infinite for other shapes or numbers."""
    if value.numel() != expected.numel():
        return float("inf")
    wide, truth = value.double().flatten(), expected.double().flatten()
    error = float((wide - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


class Norm:
    """A module's `forward` as (N, H) -> (N, H): some return a tuple."""

    def __init__(self, name: str, forward: Callable[..., Any]) -> None:
        self.name = name
        self._forward = forward

    def __call__(self, hidden: Tensor) -> Tensor:
        output = self._forward(hidden)
        first: Tensor = output[0] if isinstance(output, tuple | list) else output
        return first


@dataclass
class Seen:
    """One forward: the layers' outputs by 0-based index, and the norms that ran after the last of them."""

    order: list[int] = field(default_factory=list)
    layers: dict[int, Parts] = field(default_factory=dict)
    norms: list[tuple[Norm, Tensor]] = field(default_factory=list)  # and what it gave, (T, H)


@contextmanager
def watched(model: nn.Module, decoder: nn.ModuleList, num_here: int) -> Iterator[Seen]:
    """Forwards inside the block are seen. What is watched are `forward`s of instances, which no module hook misses.

    num_here: how many of the decoder's layers this process runs.
    """
    seen = Seen()
    changed: list[tuple[nn.Module, Any]] = []

    def change(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        changed.append((module, vars(module).get("forward")))
        setattr(module, "forward", make(module.forward))  # noqa: B010, a module's attributes are typed as tensors

    def watch_layer(index: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                parts, output = read_output(original(*args, **kwargs), forward_batch_of(args, kwargs))
                seen.order.append(index)
                seen.layers[index] = {name: tuple(part.clone() for part in whole) for name, whole in parts.items()}
                return output

            return forward

        return make

    def watch_norm(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                if len(seen.order) == num_here:
                    first = output[0] if isinstance(output, tuple | list) else output
                    seen.norms.append((Norm(name, original), flat(first).clone()))
                return output

            return forward

        return make

    inside = {id(module) for layer in decoder for module in layer.modules()}
    for index, layer in enumerate(decoder):
        change(layer, watch_layer(index))
    for name, module in model.named_modules():
        if id(module) not in inside and "norm" in type(module).__name__.lower():
            change(module, watch_norm(name))
    try:
        yield seen
    finally:
        for module, forward in reversed(changed):
            if forward is None:
                del module.forward
            else:
                setattr(module, "forward", forward)  # noqa: B010


class StartCheck:
    """Of the captured layers of one model. Raises CaptureError, which stops the start, with class, layer and error."""

    def __init__(self, runner: "ModelRunner", capture: "Capture") -> None:
        self.runner = runner
        self.capture = capture
        self.name = type(runner.model).__name__
        self.numbers: dict[str, Any] = {}  # for /led/info

    def calibrate(self) -> None:
        """Find how the layers end and which module is the final norm: of a forward without graphs."""
        if not self.capture.layers:
            return
        prepare_eager(self.runner)
        run = StartRun(self.runner)
        try:
            with watched(self.runner.model, self.capture.decoder, len(self.capture.indices_here)) as seen:
                run.prefill()
        finally:
            run.close()
        self._require_order(seen)
        self._find_norm(seen)
        self.capture.end_start()

    def _require_order(self, seen: Seen) -> None:
        if seen.order != self.capture.indices_here:
            raise CaptureError(
                f"LED cannot capture the layers of {self.name}: those of {self.capture.decoder_name} ran in the order "
                f"{[index + 1 for index in seen.order]} instead of each once. {WAY_OUT}"
            )

    def _find_norm(self, seen: Seen) -> None:
        """The ending and the norm that give, of the last layer's output, what the norm really gave."""
        last = len(self.capture.decoder) - 1
        errors: dict[tuple[str, str], float] = {}
        norms: dict[str, Norm] = {}
        for norm, output in seen.norms:
            norms[norm.name] = norm
            for ending, parts in seen.layers[last].items():
                errors[norm.name, ending] = self._norm_error(norm, parts, output)
        if not errors:
            raise CaptureError(f"LED finds no norm behind the last layer of {self.name}. {WAY_OUT}")
        (name, ending), error = min(errors.items(), key=lambda pair: pair[1])
        limit = norm_limit(seen.norms[0][1].dtype)
        self.numbers.update(
            ending=ending, final_norm=name, norm_error=error, norm_limit=limit, decoder=self.capture.decoder_name
        )
        if error > limit:
            raise CaptureError(
                f"LED cannot read the residual stream of {self.name}: {name} of layer {last + 1}'s output differs from "
                f"what it gave in the model by {error:.3g}, the limit is {limit:.3g}. {WAY_OUT}"
            )
        self.capture.ending, self.capture.final_norm = ending, norms[name]
        logger.info("LED: layers of %s end as %r, %s is the final norm (error %.2g)", self.name, ending, name, error)

    def _norm_error(self, norm: Norm, parts: tuple[Tensor, ...], output: Tensor) -> float:
        whole = sum(parts[1:], parts[0].clone())
        if whole.shape != output.shape:
            return float("inf")
        with torch.no_grad():
            return relative_error(norm(whole), output)
