"""Keep the residual streams of the sampled rows after the layers that the methods read.

The wanted layers' own `forward` is wrapped, instance by instance: some models call it directly, past module hooks.
What the engine keeps of layer outputs for its own use (EAGLE drafts, --return-aux-hidden-states) is left alone.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.decoder import (
    find_decoder,
    forward_batch_of,
    indices_here,
    read_output,
)

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Capture:
    """The latents of the current step: `buffer[j, row]` is h^{layers[j]} of the row to be sampled, un-normed.

    layers: 1-based, in the order wanted. The buffer is static, and so are the positions of the sampled rows: in a
    CUDA-graph replay no Python runs, so the copy into the buffer is part of the graph. A decode step and the
    verification of draft tokens sample every row; a prefill the last of each request.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[int, ...],
        num_layers: int,
        on_fault: Callable[["ForwardBatch"], None],
    ) -> None:
        """num_layers: of the decoder. on_fault: called in the `except` block of a fault in a forward; may raise it.

        Raises CaptureError for a model without a decoder.
        """
        self.layers = layers
        self.ending: str | None = None  # see `decoder`; None: `start_check` has not found it yet, nothing is captured
        self.final_norm: Callable[[Tensor], Tensor] | None = None
        self.takes_all_batches = False  # also those without LED rows
        self.buffer: Tensor | None = None  # (D, max rows, H); read it through `states`
        self._last_rows: Tensor | None = None  # (max rows,) int64: sampled rows of the prefill under way, then zeros
        self._on_fault = on_fault
        self.decoder_name, self.decoder = find_decoder(model, num_layers) if layers else ("", nn.ModuleList())
        self.indices_here = indices_here(self.decoder)  # 0-based
        elsewhere = [layer for layer in sorted(layers) if layer - 1 not in self.indices_here]
        if elsewhere:
            raise CaptureError(f"layers {elsewhere} are not in this process, whose pipeline stage samples the tokens")
        for position, layer in enumerate(layers):
            self._wrap(self.decoder[layer - 1], position)

    @property
    def is_ready(self) -> bool:
        return not self.layers or self.ending is not None

    def allocate(self, max_rows: int, hidden_size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.buffer = torch.zeros(len(self.layers), max_rows, hidden_size, dtype=dtype, device=device)
        self._last_rows = torch.zeros(max_rows, dtype=torch.int64, device=device)

    def begin(self, batch: "ForwardBatch") -> None:
        """Before a forward of this batch: where its sampled rows are. A graph of a prefill reads it at a replay."""
        if self._last_rows is None:
            return
        if samples_every_row(batch):
            if getattr(batch, "global_num_tokens_cpu", None) is not None:
                # Beside ranks that prefill, the engine may make prefills of one token each of the rows of a decode
                # step, and one prefill of what is no request on a rank that is idle.
                self._last_rows.zero_()
                num_rows = min(len(batch.positions), len(self._last_rows))
                torch.arange(num_rows, out=self._last_rows[:num_rows])
            return
        lengths = batch.extend_seq_lens
        if len(lengths) > len(self._last_rows):
            raise CaptureError(f"a prefill of {len(lengths)} requests does not fit LED's {len(self._last_rows)} rows")
        self._last_rows.zero_()  # a graph reads further than this batch goes, and must find rows that exist
        self._last_rows[: len(lengths)] = torch.cumsum(lengths, dim=0) - 1

    def end_start(self) -> None:
        """The forwards of the start are over."""
        self.takes_all_batches = False
        if self._last_rows is not None:
            self._last_rows.zero_()

    def _wrap(self, layer: nn.Module, position: int) -> None:
        original = layer.forward

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            batch = forward_batch_of(args, kwargs)
            if self.ending is None or batch is None or not self._is_wanted(batch):
                return output
            try:
                parts, output = read_output(output, batch)
                self.store(position, parts[self.ending], batch)
            except Exception:
                self._on_fault(batch)
            return output

        setattr(layer, "forward", forward)  # noqa: B010, a module's attributes are typed as tensors

    def _is_wanted(self, batch: "ForwardBatch") -> bool:
        """The engine's own batches are: the warm-up and the capture of a graph launch what its replays will."""
        info = getattr(batch, "sampling_info", None)
        return self.takes_all_batches or info is None or getattr(info, "led", None) is not None

    def store(self, position: int, parts: tuple[Tensor, ...], batch: "ForwardBatch") -> None:
        """Write the sampled rows of a layer into the buffer.

        position: of the layer in `layers`; parts: (T, H) each, whose sum is the residual stream. Raises CaptureError
        for rows that are a rank's share, or that do not fit the buffer.
        """
        assert self.buffer is not None and self._last_rows is not None
        num_rows, width = parts[0].shape
        _, max_rows, hidden_size = self.buffer.shape
        if num_rows != len(batch.positions):
            raise CaptureError(f"a layer returned {num_rows} rows for {len(batch.positions)} tokens")
        if width != hidden_size:
            raise CaptureError(f"a layer's output is {width} wide, the model's hidden size is {hidden_size}")
        if not samples_every_row(batch):
            # The graph of a prefill is captured with one request, and replayed with as many as have room in it.
            is_dummy = getattr(batch, "sampling_info", None) is None
            num_rows = min(num_rows, max_rows) if is_dummy else len(batch.extend_seq_lens)
            rows = self._last_rows[:num_rows]
            parts = tuple(part.index_select(0, rows) for part in parts)
        elif num_rows > max_rows:
            raise CaptureError(f"a batch of {num_rows} rows does not fit LED's buffer of {max_rows} rows")
        written = self.buffer[position, :num_rows]
        if len(parts) == 1:
            written.copy_(parts[0])
        else:
            torch.add(*parts, out=written)

    @property
    def states(self) -> Tensor:
        """(D, max rows, H)."""
        if self.buffer is None:
            raise CaptureError("no layer is captured: --led-max-depth is 1 and no other method needs one")
        return self.buffer

    def latents(self, num_layers: int, num_rows: int, index: Tensor | None) -> Tensor:
        """The first layers' states of a batch of so many rows, or of its rows `index` (R,): (num_layers, R, H)."""
        assert self.buffer is not None
        states = self.buffer[:num_layers]
        return states[:, :num_rows] if index is None else states.index_select(1, index)  # the engine may pad a batch


def samples_every_row(batch: "ForwardBatch") -> bool:
    """A step of decoding, or the verification of draft tokens: a prefill samples the last row of each request."""
    mode = batch.forward_mode
    return bool(mode.is_decode_or_idle() or mode.is_target_verify() or batch.extend_seq_lens is None)
