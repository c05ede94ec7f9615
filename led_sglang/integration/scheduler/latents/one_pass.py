"""The one-pass form in the engine: what must be known of a step before its forward, in static buffers.

A CUDA graph replays without Python, so the graph of a small batch always computes the latent rows; the buffers say
which of them matter. `lse_ready` is written by the same graph: it alone says which log-sum-exps are there.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.integration.faults import CaptureError
from led_sglang.ops.backend import Backend
from led_sglang.ops.backends import one_pass
from led_sglang.ops.types import ALIGNMENT, Head, KnownLse, StepInputs

if TYPE_CHECKING:
    from led_sglang.integration.scheduler.batch import DeviceRows

logger = logging.getLogger(__name__)


class OnePassState:
    """One per model runner. Shapes: J = `num_layers`, `max_rows` rows."""

    def __init__(
        self,
        form: str,
        backend: Backend,
        num_layers: int,
        max_rows: int,
        device: torch.device,
        is_batch_invariant: bool = False,
        head_lse: str = "full",
    ) -> None:
        """is_batch_invariant: always coin first, since the final logits of the two forms differ in their last bits.

        Raises CaptureError for the one-pass form then.
        """
        if is_batch_invariant and form == "one_pass":
            raise CaptureError(
                "--led-form one_pass is not possible with --enable-deterministic-inference: a row's numbers would "
                "depend on the size of its batch; use auto or coin_first"
            )
        self.requested, self.head_lse = form, head_lse
        self.is_batch_invariant = is_batch_invariant
        self.num_layers = num_layers
        self.device = device
        self.use_backend(backend)
        # Each begins at a multiple of ALIGNMENT: a kernel is compiled for the alignment of its pointers.
        width = -(-max_rows // ALIGNMENT) * ALIGNMENT
        self.flags = torch.zeros(2, width, dtype=torch.bool, device=device)[:, :max_rows]
        self.mask, self.lse_ready = self.flags
        self.tau = torch.ones(max_rows, device=device)
        self.lse = torch.zeros(num_layers, width, device=device)[:, :max_rows]
        self.graph_sizes: list[int] = []  # decode graphs seen, ascending
        self.fault: str | None = None  # why the form is not one pass although it should be
        self.is_one_pass = False  # the forward under way computes latent rows
        self.is_captured = False  # it is recorded into a CUDA graph
        self.num_steps = {"one_pass": 0, "coin_first": 0}

    def form(self, num_rows: int) -> str:
        """A batch that a graph serves has the form of its graph."""
        position = bisect_left(self.graph_sizes, num_rows)
        return self._form_of(self.graph_sizes[position] if position < len(self.graph_sizes) else num_rows)

    def _form_of(self, size: int) -> str:
        if self.is_batch_invariant or self.num_layers == 0 or self.fault is not None:
            return "coin_first"
        if not self.backend.supports_one_pass:
            return "coin_first"
        return one_pass.form_of(size, self.requested, self.backend.allows_dynamic_shapes, self.head_lse)

    def on_graph_warmup(self, num_rows: int, is_captured: bool) -> None:
        """The engine warms up a decode batch of so many rows, or captures the graph of it.

        The form is that of this size, never that of a larger graph: a warm-up must launch every kernel that its capture
        launches, because a kernel cannot be loaded while a stream is captured.
        """
        if is_captured and num_rows not in self.graph_sizes:
            self.graph_sizes = sorted([*self.graph_sizes, num_rows])
        self.is_captured = is_captured
        self.is_one_pass = num_rows <= len(self.mask) and self._form_of(num_rows) == "one_pass"

    def use_backend(self, backend: Backend) -> None:
        """Another one, before any graph is captured."""
        self.backend = backend

    def clear(self) -> None:
        """Before every decode forward: no row is computed, unless `fill_mask` says otherwise."""
        self.is_one_pass = self.is_captured = False
        if self.graph_sizes:
            self.flags.zero_()

    def fill_mask(self, rows: "DeviceRows", inputs: StepInputs, num_rows: int) -> None:
        """Fill the buffers for a batch of so many rows, of which `rows` are ours."""
        if not self.graph_sizes:
            self.flags[:, :num_rows] = False
        self.backend.one_pass_mask(rows.params, inputs, rows.index, self.mask, self.tau)
        if rows.edited is not None:  # a latent row of the one-pass form has no edits
            self.mask.index_fill_(0, rows.edited if rows.index is None else rows.index[rows.edited], False)
        self.is_one_pass = True

    def through(self, multiply: Callable[..., Tensor], hidden: Tensor, head: Head, buffer: Tensor) -> Tensor:
        """The engine's head product, with latent rows. After a fault of ours it is the engine's own; see `fault`.

        Raises CaptureError for a fault inside a graph capture, which is invalid from there on.
        """
        try:
            return self._through(multiply, hidden, head, buffer)
        except Exception as error:
            if self.is_captured:
                raise CaptureError(
                    f"LED's one-pass form failed while the CUDA graph of {len(hidden)} rows was captured: "
                    f"{type(error).__name__}: {error}. Start with --led-form coin_first"
                ) from error
            self.fault, self.is_one_pass = f"{type(error).__name__}: {error}", False
            logger.exception("LED's one-pass form failed; coin first from here on")
            return multiply(hidden)

    def _through(self, multiply: Callable[..., Tensor], hidden: Tensor, head: Head, buffer: Tensor) -> Tensor:
        num_rows = len(hidden)
        latents, tau = buffer[: self.num_layers, :num_rows], self.tau[:num_rows]
        mask, lse = self.mask[:num_rows], self.lse[:, :num_rows]
        if self.backend.allows_dynamic_shapes:  # the engine's own bits for every row; its weight is read again
            logits = multiply(hidden)
            one_pass.separate_pass(latents, head, tau, mask, lse)
        else:
            logits = self.backend.head_pass(hidden, latents, head, tau, mask, lse)
        self.lse_ready[:num_rows] = mask
        return logits

    def known_lse(self, rows: "DeviceRows", num_rows: int) -> KnownLse:
        """What the head's pass of this step's forward has written for our rows."""
        lse, lse_ready = self.lse[:, :num_rows], self.lse_ready[:num_rows]
        if rows.index is not None:
            lse, lse_ready = lse.index_select(1, rows.index), lse_ready.index_select(0, rows.index)
        return one_pass.known_lse_of(rows.params, lse, lse_ready, self.backend.coin_threshold)

    def status(self) -> dict[str, Any]:
        """For /led/info."""
        return {
            "asked": self.requested,
            "one_pass_up_to_rows": self._largest(),
            "batch_invariant": self.is_batch_invariant,
            "steps": dict(self.num_steps),
            "fault": self.fault,
        }

    def _largest(self) -> int:
        """Batches up to so many rows take the one-pass form; 0: none does."""
        sizes = range(1, len(self.mask) + 1)
        return max((size for size in sizes if self.form(size) == "one_pass"), default=0)
