"""Soft Thinking's part of the engine: the next input of a thinking row is a mixture of token embeddings.

What was chosen stays on the device, by request slot. In a decode step the embedding lookup mixes every row's
candidates, in shapes that do not depend on data, and takes the mixture where the slot says so and the engine's own
lookup elsewhere. So the same kernels run whoever is in the batch, and a CUDA graph that has captured them replays them
with the slots that it is given: no Python is needed in a replay.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from led_sglang.config.fields import MAX_SOFT_TOP_K
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.soft_support import refuse_soft

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class SoftInputs:
    """Per request slot: candidates, weights, whether the next input is a mixture. Made where a soft method is enabled.

    Raises CaptureError where decode steps hide in other batches or the close marker has several tokens.
    """

    def __init__(self, runner: "ModelRunner", config: ServerConfig, fail: Callable[[Any], None]) -> None:
        """fail: called with the forward's batch in the `except` block of a fault, after which it gets tokens."""
        slots = runner.req_to_token_pool.req_to_token.shape[0] + 1
        device = torch.device(runner.device)
        refuse_soft(config, runner.server_args)
        if not hasattr(getattr(runner.model, "model", None), "embed_tokens"):
            raise CaptureError(f"soft_thinking finds no model.embed_tokens in {type(runner.model).__name__}")
        self.close_id = config.close_ids[0]
        self.ids = torch.zeros(slots, MAX_SOFT_TOP_K, dtype=torch.int64, device=device)
        self.weights = torch.zeros(slots, MAX_SOFT_TOP_K, dtype=torch.float32, device=device)
        self.is_soft = torch.zeros(slots, dtype=torch.bool, device=device)
        self.num_low_entropy = torch.zeros(slots, dtype=torch.int64, device=device)
        self.allows_dynamic_shapes = device.type == "cpu"
        self._batch: Any = None
        self._fail = fail
        self._install(runner.model)

    @property
    def num_bytes(self) -> int:
        """Device memory of the tables."""
        return sum(table.nbytes for table in (self.ids, self.weights, self.is_soft, self.num_low_entropy))

    def write(self, slots: Tensor, ids: Tensor, weights: Tensor, is_soft: Tensor, num_low_entropy: Tensor) -> None:
        """Remember a step of soft rows: (n,), (n, K), (n, K), (n,), (n,)."""
        width = ids.shape[1]
        self.ids[slots, :width] = ids
        self.weights[slots] = 0.0
        self.weights[slots, :width] = weights
        self.is_soft[slots] = is_soft
        self.num_low_entropy[slots] = num_low_entropy

    def forget(self, slots: Tensor) -> None:
        """Their next inputs are tokens: a prompt begins in the slot, or a step of ours failed. slots: (n,)."""
        self.is_soft[slots] = False

    def _install(self, model: Any) -> None:
        embed: nn.Module = model.model.embed_tokens
        look_up, run = embed.forward, model.forward

        def forward(
            input_ids: Tensor, positions: Tensor, forward_batch: "ForwardBatch", *args: object, **kwargs: object
        ) -> Any:
            self._batch = forward_batch
            try:
                return run(input_ids, positions, forward_batch, *args, **kwargs)
            finally:
                self._batch = None

        def embed_or_mix(input_ids: Tensor) -> Tensor:
            embedded: Tensor = look_up(input_ids)
            try:
                return self._mix(embedded, look_up)
            except Exception:
                self._fail(self._batch)
                return embedded

        setattr(model, "forward", forward)  # noqa: B010, a module's attributes are typed as tensors
        setattr(embed, "forward", embed_or_mix)  # noqa: B010

    def _mix(self, embedded: Tensor, look_up: Any) -> Tensor:
        """plain: (rows, H), what the engine would feed. The graph's padding rows read a slot that no request owns."""
        if self._batch is None or not self._batch.forward_mode.is_decode():
            return embedded
        slots = self._batch.req_pool_indices
        is_soft = self.is_soft[slots]
        if self.allows_dynamic_shapes:  # all ranks look up alike: their tables are equal
            rows = is_soft.nonzero().flatten()
            return embedded.index_copy(0, rows, self._mixed(slots[rows], embedded, look_up)) if len(rows) else embedded
        return torch.where(is_soft[:, None], self._mixed(slots, embedded, look_up), embedded)

    def _mixed(self, slots: Tensor, embedded: Tensor, look_up: Any) -> Tensor:
        """(n,) slots to (n, H) mixtures of their candidates' embeddings."""
        ids, weights = self.ids[slots], self.weights[slots]  # (n, K)
        embeddings = look_up(ids.flatten()).view(*ids.shape, -1)  # (n, K, H)
        return (weights[..., None] * embeddings.float()).sum(1).to(embedded.dtype)


def keep_out_of_prefix_cache(req: "Req") -> None:
    """Keys and values of soft steps do not belong to the reported tokens: they must not be reused."""
    req.skip_radix_cache_insert = True
