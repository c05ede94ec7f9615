"""The one-pass form's state: its form by batch size, and its buffers."""

import pytest
import torch

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.types import ALIGNMENT

CPU = torch.device("cpu")
FIXED = TorchBackend(allows_dynamic_shapes=False)  # as on a GPU


def test_deterministic_inference_has_one_form() -> None:
    one_pass_state = OnePassState("auto", FIXED, 3, 64, CPU, is_batch_invariant=True)
    assert one_pass_state.status()["batch_invariant"] and one_pass_state.status()["one_pass_up_to_rows"] == 0
    assert OnePassState("auto", FIXED, 3, 64, CPU).status()["one_pass_up_to_rows"] == one_pass.MAX_ROWS
    with pytest.raises(CaptureError, match="--led-form one_pass is not possible with --enable-deterministic-inference"):
        OnePassState("one_pass", FIXED, 3, 64, CPU, is_batch_invariant=True)


@pytest.mark.parametrize("max_rows", [1, 15, 16, 17, 258])
def test_a_servers_buffers_are_aligned(max_rows: int) -> None:
    """A kernel is compiled anew for pointers that are not, in the middle of a request."""
    one_pass_state = OnePassState("auto", FIXED, 3, max_rows, CPU)
    rows = (
        one_pass_state.flags[0],
        one_pass_state.flags[1],
        one_pass_state.mask,
        one_pass_state.lse_ready,
        one_pass_state.tau,
        *one_pass_state.lse,
    )
    assert all(row.data_ptr() % ALIGNMENT == 0 and len(row) == max_rows for row in rows)
