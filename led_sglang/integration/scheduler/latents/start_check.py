"""What a start proves on the real model, dtype, ranks and graphs, before a request is taken.

An off-by-one layer, a missing residual or a forgotten scale still gives plausible text. So the start runs a prefill and
a decode step of random tokens, looks at them from outside of the capture (`watch`), and once more after graphs are
captured. It refuses with class, layer, error and limit; the numbers are in /led/info.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.decoder import WAY_OUT
from led_sglang.integration.scheduler.latents.start_run import LENGTHS, StartRun, prepare_eager
from led_sglang.integration.scheduler.latents.watch import Norm, Seen, watched
from led_sglang.ops.backends.lm_head import layer_logits
from led_sglang.ops.types import Head

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from led_sglang.integration.scheduler.latents.capture import Capture

logger = logging.getLogger(__name__)

# Relative errors, float32 | half precision. In half precision the engine's norm adds and rounds in one kernel.
NORM_LIMITS = 1e-4, 0.03  # right: 0 | up to 0.0075; wrong by an ending, a residual or a layer: 0.126 and more
REPLAY_LIMITS = 0.02, 0.05  # a graph's kernels may round in another order; a row that was not written is not a number
SCALE_REST_LIMIT = 0.01  # what is left of the head's input once it is taken for a multiple of the norm's output
LOGITS_LIMITS = 1e-3, 0.03  # of their range


def limit_of(limits: tuple[float, float], dtype: torch.dtype) -> float:
    return limits[0] if dtype.itemsize >= 4 else limits[1]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected magnitude; infinite for other shapes or numbers."""
    if value.numel() != expected.numel():
        return float("inf")
    wide, truth = value.double().flatten(), expected.double().flatten()
    error = float((wide - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


class StartCheck:
    """Of the captured layers of one model. Raises CaptureError, which stops the start."""

    def __init__(self, runner: "ModelRunner", capture: "Capture") -> None:
        self.runner = runner
        self.capture = capture
        self.name = type(runner.model).__name__
        self.numbers: dict[str, Any] = {}  # for /led/info
        self.head_scale = 1.0  # of the head's input, against the final norm's output
        self._rows: dict[str, Tensor] = {}  # by step: (D, B, H)

    def run(self, capture_graphs: Callable[[], None], head: Callable[[], Head | None]) -> None:
        """Around the engine's capture of its graphs. head: as it is known after a forward."""
        if not self.capture.layers:
            capture_graphs()
            return
        started = time.perf_counter()
        self._find_ending()
        self._check_rows()
        found = head()
        assert found is not None, "no logits processor has run"
        self._check_head(found)
        seconds = time.perf_counter() - started
        capture_graphs()
        started = time.perf_counter()
        self._check_graphs()
        self.numbers["seconds"] = round(seconds + time.perf_counter() - started, 3)
        logger.info("LED: the start check of %s passed: %s", self.name, self.numbers)

    def _find_ending(self) -> None:
        """How the layers end, and which module is the final norm. Before graphs are captured."""
        prepare_eager(self.runner)
        run = StartRun(self.runner)
        try:
            with watched(self.runner.model, self.capture.decoder, len(self.capture.indices_here)) as seen:
                run.prefill()
        finally:
            run.close()
        self._require_order(seen)
        self._find_norm(seen)
        self._find_scale(seen)

    def _check_rows(self) -> None:
        """That the rows in the buffer are the layers' outputs, bit for bit."""
        self.numbers["eager"] = {}
        for step, logits, seen in self._steps(is_watched=True):
            assert seen is not None
            ending = self._ending
            errors: dict[int, float] = {}
            for position, layer in enumerate(self.capture.layers):
                expected = _sampled(seen.layer(layer - 1, ending), step)
                kept = self._rows[step][position]
                errors[layer] = relative_error(kept, expected.to(kept.dtype))
            self._require(f"eager {step}", errors, 0.0)
            self.numbers["eager"][step] = max(errors.values())
            if step == "prefill":
                self._last_layer = _sampled(seen.layer(len(self.capture.decoder) - 1, ending), step), logits
        self._require_different_layers()

    def _check_head(self, head: Head) -> None:
        """That the engine's logits are those of our head on the last layer's output, with the final norm."""
        hidden, logits = self._last_layer
        assert self.capture.final_norm is not None
        with torch.no_grad():
            found = layer_logits(self.capture.final_norm(hidden), head, 0, head.num_rows)
        expected = logits[:, head.first_id : head.first_id + head.num_rows].double()
        spread = float(expected.max() - expected.min()) if expected.numel() else 1.0
        error = float((found.double() - expected).abs().max()) / spread if expected.numel() else 0.0
        limit = limit_of(LOGITS_LIMITS, hidden.dtype)
        self.numbers.update(logits_error=error, logits_limit=limit)
        if not error <= limit:
            raise CaptureError(
                f"LED cannot multiply with the LM head of {self.name}: its logits differ from the engine's by "
                f"{error:.3g} of their range, the limit is {limit:.3g}. {WAY_OUT}"
            )
        del self._last_layer

    def _check_graphs(self) -> None:
        """That the same steps through the engine's dispatch, a graph where there is one, leave the same rows."""
        before, self._rows = self._rows, {}
        self.numbers["replayed"] = {}
        for step, _, _ in self._steps(is_watched=False):
            limit = limit_of(REPLAY_LIMITS, before[step].dtype)
            pairs = zip(self.capture.layers, self._rows[step], before[step], strict=True)
            errors = {layer: relative_error(found, expected) for layer, found, expected in pairs}
            self._require(f"{self._last_path} {step}", errors, limit)
            self.numbers["replayed"][step] = {"path": self._last_path, "error": max(errors.values()), "limit": limit}
        self._rows = {}

    @property
    def _ending(self) -> str:
        assert self.capture.ending is not None
        return self.capture.ending

    def _steps(self, is_watched: bool) -> Iterator[tuple[str, Tensor, Seen | None]]:
        """(step, logits, seen) of a prefill and a decode step; what they leave in the buffer is kept in `_eager`."""
        run = StartRun(self.runner)
        self.capture.takes_all_batches = True
        try:
            for step in ("prefill", "decode") if self.runner.spec_algorithm.is_none() else ("prefill",):
                self.capture.states.fill_(torch.nan)  # a row that is not written shows
                if is_watched:
                    with watched(self.runner.model, self.capture.decoder, len(self.capture.indices_here)) as seen:
                        logits = run.step(step)
                else:
                    seen, logits = None, run.step(step)
                self._last_path = "replayed" if run.was_replayed else "eager"
                self._rows[step] = self.capture.states[:, : len(LENGTHS)].clone()
                yield step, logits, seen
        finally:
            self.capture.states.zero_()
            self.capture.end_start()
            run.close()

    def _require(self, what: str, errors: dict[int, float], limit: float) -> None:
        layer, error = max(errors.items(), key=lambda pair: pair[1])
        if error > limit:
            raise CaptureError(
                f"LED's start check of {self.name} failed: in the {what} step the captured output of layer {layer} is "
                f"off by {error:.3g}, the limit is {limit:.3g}. {WAY_OUT}"
            )

    def _require_order(self, seen: Seen) -> None:
        if seen.order != self.capture.indices_here:
            raise CaptureError(
                f"LED cannot capture the layers of {self.name}: those of {self.capture.decoder_name} ran in the order "
                f"{[index + 1 for index in seen.order]} instead of each once. {WAY_OUT}"
            )

    def _require_different_layers(self) -> None:
        """Two neighbours that are equal would hide an order that is wrong; a layer without weights may add nothing."""
        captured = sorted(self.capture.layers)
        for layer in captured[1:]:
            pair = [self._rows["prefill"][self.capture.layers.index(each)] for each in (layer - 1, layer)
                    if each in captured]  # fmt: skip
            has_weights = any(True for _ in self.capture.decoder[layer - 1].parameters())
            if len(pair) == 2 and has_weights and torch.equal(*pair):
                raise CaptureError(
                    f"LED's start check of {self.name} failed: the captured outputs of layers {layer - 1} and {layer} "
                    f"are equal. {WAY_OUT}"
                )

    def _find_norm(self, seen: Seen) -> None:
        """The ending and the norm that give, of the last layer's output, what the norm really gave."""
        last = len(self.capture.decoder) - 1
        errors = {
            (number, ending): self._norm_error(norm, seen.layer(last, ending), output)
            for number, (norm, output) in enumerate(seen.norms)
            for ending in seen.layers[last]
        }
        if not errors:
            raise CaptureError(f"LED finds no norm behind the last layer of {self.name}. {WAY_OUT}")
        (number, ending), error = min(errors.items(), key=lambda pair: pair[1])
        norm, output = seen.norms[number]
        limit = limit_of(NORM_LIMITS, output.dtype)
        self.numbers.update(
            decoder=self.capture.decoder_name,
            ending=ending,
            final_norm=norm.name,
            norm_error=error,
            norm_limit=limit,
        )
        if error > limit:
            raise CaptureError(
                f"LED cannot read the residual stream of {self.name}: {norm.name} of layer {last + 1}'s output differs "
                f"from what it gave in the model by {error:.3g}, the limit is {limit:.3g}. {WAY_OUT}"
            )
        if last:
            shifted = self._norm_error(norm, seen.layer(last - 1, ending), output)
            self.numbers["shifted_norm_error"] = shifted
            if shifted <= limit:
                raise CaptureError(
                    f"LED cannot tell the last two layers of {self.name} apart: with layer {last}'s output {norm.name} "
                    f"differs by {shifted:.3g}, within the limit of {limit:.3g}. {WAY_OUT}"
                )
        self.capture.ending, self.capture.final_norm, self._norm_output = ending, norm, output

    def _norm_error(self, norm: Norm, hidden: Tensor, output: Tensor) -> float:
        if hidden.shape != output.shape:
            return float("inf")
        with torch.no_grad():
            return relative_error(norm(hidden), output)

    def _find_scale(self, seen: Seen) -> None:
        """Some models scale what the norm gives before the head: latents need the same."""
        assert seen.head_input is not None
        given, normed = seen.head_input.double().flatten(), self._norm_output.double().flatten()
        if given.shape != normed.shape:
            raise CaptureError(
                f"the LM head of {self.name} is given {tuple(seen.head_input.shape)}, the final norm gives "
                f"{tuple(self._norm_output.shape)}. {WAY_OUT}"
            )
        scale = float((given @ normed) / (normed @ normed).clamp_min(1e-30))
        rest = relative_error(given, scale * normed)
        self.numbers.update(head_scale=scale, head_scale_rest=rest)
        if rest > SCALE_REST_LIMIT:
            raise CaptureError(
                f"the LM head of {self.name} is not given a multiple of what its final norm gives: a share of "
                f"{rest:.3g} is left, the limit is {SCALE_REST_LIMIT}. {WAY_OUT}"
            )
        self.head_scale = scale if abs(scale - 1.0) > SCALE_REST_LIMIT else 1.0
        del self._norm_output


def _sampled(hidden: Tensor, step: str) -> Tensor:
    """(T, H) -> (B, H)."""
    if step == "decode":
        return hidden
    return hidden[torch.tensor(LENGTHS, device=hidden.device).cumsum(0) - 1]
