"""What the check at start must catch: each is done to a process before its model is loaded."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch


def shift_the_layers() -> None:
    """DeepSeek's setter: the layer before the wanted one."""
    from led_sglang.integration.scheduler.latents.capture import Capture

    wrap = Capture._wrap

    def shifted(self: Any, layer: Any, position: int) -> None:
        wrap(self, self.decoder[self.layers[position] - 2], position)

    Capture._wrap = shifted  # type: ignore[method-assign]


def keep_only(*endings: str) -> Callable[[], None]:
    """A rule instead of a calibration."""

    def do() -> None:
        change_reading(lambda parts: {name: whole for name, whole in parts.items() if name in endings})

    return do


def forget_the_residual() -> None:
    """Gemma 3's setter."""
    change_reading(lambda parts: {name: whole[:1] for name, whole in parts.items()})


def change_reading(change: Callable[[Any], Any]) -> None:
    from led_sglang.integration.scheduler.latents import capture, watch

    read = capture.read_output

    def changed(output: Any, batch: Any) -> Any:
        parts, output = read(output, batch)
        return change(parts), output

    capture.read_output = watch.read_output = changed


def keep_other_rows() -> None:
    """The first rows of each request."""
    from led_sglang.integration.scheduler.latents.capture import Capture

    begin = Capture.begin

    def shifted(self: Any, batch: Any) -> None:
        begin(self, batch)
        self._last_rows.clamp_(max=3)

    Capture.begin = shifted  # type: ignore[method-assign]


def stop_writing_after_the_graphs() -> None:
    """What a graph drops: Python does not run again."""
    from led_sglang.integration.scheduler.latents.start_check import StartCheck

    check = StartCheck._check_graphs

    def without(self: Any) -> None:
        self.capture.store = lambda *args: None
        check(self)

    StartCheck._check_graphs = without  # type: ignore[method-assign]


def change_head(change: Callable[[Any], Any]) -> Callable[[], None]:
    def do() -> None:
        from led_sglang.integration.scheduler import runtime

        build = runtime.build_head
        runtime.build_head = lambda *args: change(build(*args))

    return do


def add_bias(head: Any) -> Any:
    return replace(head, bias=torch.full((head.weight.shape[0],), 0.5).normal_())


def take_half(head: Any) -> Any:
    """An embedding that every rank has whole, taken for a shard."""
    return replace(head, first_id=head.num_rows // 2, num_rows=head.num_rows // 2)


BREAKAGES: dict[str, Callable[[], None]] = {
    "shifted layers": shift_the_layers,
    "sum alone": keep_only("sum"),
    "first alone": keep_only("first"),
    "no residual": forget_the_residual,
    "other rows": keep_other_rows,
    "no write in a replay": stop_writing_after_the_graphs,
    "a bias": change_head(add_bias),
    "a scale": change_head(lambda head: replace(head, scale=head.scale * 1.5)),
    "a whole head as a shard": change_head(take_half),
}
