"""What one call of the sampler starts from: our rows of the batch, and their inputs before the token is known."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from led_sglang.integration.scheduler.batch import DeviceRows, LedBatch
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops.types import RowInputs

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


@dataclass(frozen=True)
class SamplerInputs:
    """Made before a step's forward where its form is one pass, else at the sampler."""

    runtime: Runtime
    rows: DeviceRows
    info: "SamplingBatchInfo"
    row_inputs: RowInputs
    is_one_pass: bool = False

    @classmethod
    def begin(
        cls, led: LedBatch, info: "SamplingBatchInfo", positions: Tensor, current: Runtime, is_one_pass: bool = False
    ) -> "SamplerInputs":
        """positions: (B,), of the token that is decided next."""
        rows = led.device_rows(info)
        row_inputs = current.row_inputs(rows, positions)
        return cls(current, rows, info, row_inputs, is_one_pass)

    @property
    def active(self) -> Tensor:
        """(R,) bool: LED decides them, inside their phase."""
        return self.row_inputs.active

    @property
    def active_array(self) -> Any:
        """The same as numpy sees it. CPU only."""
        return self.row_inputs.active.numpy()

    @property
    def mask_rows(self) -> Tensor | None:
        """Rows of the batch that want their sampling masks; None: no row does."""
        rows: Tensor | None = getattr(self.info, "sampling_mask_batch_indices", None)
        return rows

    @property
    def is_led_alone(self) -> bool:
        """The batch holds LED's requests only, the engine reports tokens alone, and shapes may depend on data."""
        reports_more = self.info.sampling_seed is not None or self.mask_rows is not None
        is_whole = self.rows.index is None and self.rows.is_led is None
        return is_whole and not reports_more and self.runtime.allows_dynamic_shapes

    @property
    def is_filtered(self) -> bool:
        """A row of the batch has top-k, top-p or min-p."""
        info = self.info
        return info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling

    @property
    def may_draw_inactive(self) -> bool:
        """LED may sample the rows outside their phase as the engine would: it has their distribution at hand.

        Where the engine would draw from all of it, and no seed has to give the same text in any company.
        """
        return self.runtime.backend.draws_inactive and self.rows.seeded is None and not self.is_filtered

    @property
    def may_decide_alone(self) -> bool:
        """LED may turn out to give every row of a batch its token; one that is all greedy is cheap."""
        if not self.is_led_alone or self.info.is_all_greedy:
            return False
        return bool(self.active_array.any()) if self.may_draw_inactive else bool(self.active_array.all())
