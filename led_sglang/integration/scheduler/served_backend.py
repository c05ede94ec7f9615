"""The backend of the LED step that this server uses: chosen at model load, checked with the head that is served."""

import logging

import torch
from torch import Tensor

from led_sglang.ops import backend_for
from led_sglang.ops.backend import Backend
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.self_test import fault_of, fault_with
from led_sglang.ops.types import Head

logger = logging.getLogger(__name__)


class ServedBackend:
    """`backend` is the one in use; it changes at most once, before any CUDA graph is captured."""

    def __init__(self, requested: str, device: torch.device, dtype: torch.dtype) -> None:
        """ "auto" is "triton" on a GPU if its kernels, compiled there, do what plain torch does, else "torch"."""
        self.requested = requested
        self.device = device
        self.backend: Backend = backend_for(requested, device)
        self.fault: str | None = None  # why it is not the one that "auto" would have been
        if self._is_checked:
            self.fault = fault_of(self.backend, device, dtype)
        if self.fault is not None:
            self._use_torch()
        self.backend.prepare()

    @property
    def _is_checked(self) -> bool:
        return self.requested == "auto" and self.backend.name == "triton"

    def _use_torch(self) -> None:
        logger.warning('LED: backend "triton" is not used here, "torch" is: %s', self.fault)
        self.backend = backend_for("torch", self.device)

    def warm_up(
        self,
        head: Head,
        latents: Tensor,
        vocab_size: int,
        max_rows: int,
        max_top_k: int,
        tables: ThinkingTables | None,
    ) -> None:
        """With the head that is served: whether the kernels are right, then all that requests can reach of them.

        latents: (D, any, H), of which shape and dtype are taken. Called at the first use of the head, which is the
        engine's own warm-up and comes before any graph capture. The ranks use one backend: where one of them finds a
        fault, none uses the kernels.
        """
        if self._is_checked:
            self.fault = fault_with(self.backend, head, latents, max_top_k)
        if self.requested == "auto" and is_true_anywhere(self.fault is not None, head):
            self.fault = self.fault or "another tensor-parallel rank found a fault"
            self._use_torch()
        self.backend.warm_up(head, latents, vocab_size, max_rows, max_top_k, tables)


def is_true_anywhere(value: bool, head: Head) -> bool:
    """On any rank that holds a part of the head; every one of them has to call this."""
    if head.all_gather is None:
        return value
    own = torch.full((1,), float(value), device=head.weight.device)
    return bool(head.all_gather(own).any())
