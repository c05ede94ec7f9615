"""Keep the last layers' residual streams of every sampled row, through the engine's own EAGLE-3 seam."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError

logger = logging.getLogger(__name__)


class InnerCapture:
    """For models whose inner module keeps layer outputs but whose outer class cannot ask for them (MiMo).

    Once asked, the inner module returns `(hidden_states, aux_hidden_states)`; the outer one expects `hidden_states`.
    A forward hook parts them, not a wrapper of `inner.forward`: prefill graphs capture and replace `inner.forward`
    itself, so a wrapper would not run at a replay, and the outer model calls the module either way.
    """

    def __init__(self, inner: nn.Module, layers: list[int]) -> None:
        """layers: 1-based."""
        self.aux: list[Tensor] | None = None
        setattr(inner, "layers_to_capture", layers)  # noqa: B010, not a tensor or module
        inner.register_forward_hook(self._part)

    def _part(self, inner: nn.Module, args: Any, result: Any) -> Any:
        if isinstance(result, tuple):
            result, self.aux = result
        return result

    def take(self) -> list[Tensor] | None:
        aux, self.aux = self.aux, None
        return aux


def require_layers(model: nn.Module, layers: list[int]) -> None:
    """See to it that the model keeps the outputs of these layers, 1-based and ascending, and of no others.

    What SGLang's `set_eagle3_layers_to_capture` makes of its 0-based ids differs: the DeepSeek files add 1 only if the
    first id is 1, and keep the layer before the wanted one otherwise. So its result is read back: `layers_to_capture`
    holds what enters 0-based layer i, which is the output of 1-based layer i; in some models the layers are marked too.
    Raises CaptureError where the result cannot be read back or corrected.
    """
    name = type(model).__name__
    holders = [module for module in model.modules() if getattr(module, "layers_to_capture", None)]
    if len(holders) != 1:
        raise CaptureError(
            f"LED cannot tell which layers {name} captures: {len(holders)} of its modules have layers_to_capture set, "
            f"expected 1. Start with --led-max-depth 1 or --led disabled, or use a supported model (docs/compat.md)."
        )
    holder: Any = holders[0]
    found = sorted(holder.layers_to_capture)
    decoder = getattr(holder, "layers", ())
    marked = [i for i, layer in enumerate(decoder) if getattr(layer, "_is_layer_to_capture", False)]
    if found != layers and not marked:
        holder.layers_to_capture = found = layers
        logger.info("LED: %s would have captured other layers than asked; corrected to %s", name, layers)
    if found != layers or (marked and marked != layers):
        raise CaptureError(
            f"LED asked {name} for the outputs of layers {layers}, it would capture {marked or found}. Start with "
            f"--led-max-depth 1 or --led disabled, or use a supported model (docs/compat.md)."
        )


class Capture:
    """The captured latents of the current step: `buffer[j, row]` is h^{layers[j]} of the row to be sampled, un-normed.

    layers: 1-based, in the order wanted. The buffer is static: in a CUDA-graph replay no Python runs, so the copy into
    it must be part of the graph. Where shapes may depend on data it is copied when it is read: most steps explore in no
    row.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...], allows_dynamic_shapes: bool = True) -> None:
        """allows_dynamic_shapes: of the backend; False: every step is copied, in a graph too. Raises CaptureError."""
        self.layers = layers
        self.allows_dynamic_shapes = allows_dynamic_shapes
        self.layer_ids = [layer - 1 for layer in sorted(layers)]  # 0-based, ascending, as SGLang wants them
        self._order = [sorted(layers).index(layer) for layer in layers]
        self.inner: InnerCapture | None = None
        self.buffer: Tensor | None = None  # (D, max rows, H); read it through `states`
        self._pending: list[Tensor] | None = None  # D x (T, H), not copied yet
        self._pending_index: Tensor | None = None
        if layers:
            self._request_layers(model)

    def _request_layers(self, model: Any) -> None:
        if hasattr(model, "set_eagle3_layers_to_capture"):
            model.set_eagle3_layers_to_capture(self.layer_ids)
            require_layers(model, sorted(self.layers))
            return
        inner = getattr(model, "model", None)
        if isinstance(inner, nn.Module) and hasattr(inner, "layers_to_capture"):
            self.inner = InnerCapture(inner, sorted(self.layers))
            return
        raise CaptureError(
            f"LED cannot capture the layers of {type(model).__name__}: it has no set_eagle3_layers_to_capture, nor has "
            f"its inner model layers_to_capture. Start with --led-max-depth 1 or --led disabled, or use a supported "
            f"model (docs/compat.md)."
        )

    def allocate(self, max_rows: int, hidden_size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.buffer = torch.zeros(len(self.layers), max_rows, hidden_size, dtype=dtype, device=device)

    def store(
        self, aux: Tensor | list[Tensor] | None, last_index: Tensor | None, num_tokens: int | None = None
    ) -> None:
        """Copy the sampled rows' layer outputs into the buffer.

        aux: ascending layers, a list of (T, H) or one packed (T, D * H); last_index: (B,) rows of T, None = all;
        num_tokens: of the hidden states. Raises CaptureError for layers that are missing, that are a rank's share of
        the rows, or that do not fit the buffer, which torch would resize without a word.
        """
        if self.buffer is None or not self.layers:
            return
        if self.inner is not None:
            aux = self.inner.take()
        if aux is None:
            raise CaptureError("the model returned no layer outputs although they were asked for")
        if isinstance(aux, Tensor):
            aux = list(aux.view(aux.shape[0], len(self.layers), -1).unbind(1))
        if len(aux) != len(self.layers):
            raise CaptureError(f"the model returned {len(aux)} layer outputs, {len(self.layers)} were asked for")
        num_kept, width = aux[0].shape
        _, max_rows, hidden_size = self.buffer.shape
        if num_tokens is not None and num_kept < num_tokens:
            raise CaptureError(f"the model returned {num_kept} rows of its layers for {num_tokens} tokens")
        if width != hidden_size:
            raise CaptureError(f"the model returned layers {width} wide, its hidden size is {hidden_size}")
        num_rows = num_kept if last_index is None else len(last_index)
        if num_rows > max_rows:
            raise CaptureError(f"a batch of {num_rows} rows does not fit LED's buffer of {max_rows} rows")
        self._pending, self._pending_index = aux, last_index
        if not self.allows_dynamic_shapes:
            self._copy()

    def _copy(self) -> None:
        if self._pending is None or self.buffer is None:
            return
        rows = self._rows(len(self.layers))
        torch.stack(rows, out=self.buffer[:, : rows[0].shape[0]])
        self.drop()

    def _rows(self, num_layers: int) -> list[Tensor]:
        """The first layers' sampled rows, not copied yet: num_layers x (B, H)."""
        assert self._pending is not None
        layers, index = [self._pending[i] for i in self._order[:num_layers]], self._pending_index
        return layers if index is None else [h.index_select(0, index) for h in layers]

    @property
    def states(self) -> Tensor:
        """The buffer, with the current step in it: (D, max rows, H)."""
        if self.buffer is None:
            raise CaptureError("no layer is captured: --led-max-depth is 1 and no other method needs one")
        self._copy()
        return self.buffer

    def latents(self, num_layers: int, num_rows: int, index: Tensor | None) -> Tensor:
        """The first layers' states of a batch of so many rows, or of its rows `index` (R,): (num_layers, R, H)."""
        if self._pending is None:
            states = self.states[:num_layers]
        else:
            states = torch.stack(self._rows(num_layers))
        return states[:, :num_rows] if index is None else states.index_select(1, index)  # the engine may pad a batch

    def drop(self) -> None:
        """Forget layer outputs that are not read any more."""
        self._pending = self._pending_index = None
        if self.inner is not None:
            self.inner.take()
