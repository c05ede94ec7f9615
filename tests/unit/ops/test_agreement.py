"""A backend is trusted on a machine once it has done there what plain torch does."""

import pytest
import torch

from led_sglang.ops.backends import torch_step
from led_sglang.ops.backends.self_test import fault_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["fused", "compiled"])
def test_backends_that_are_right_have_no_fault(backend, dtype):
    assert fault_of(backend, CPU, dtype) is None


def test_what_raises_or_differs_is_told(monkeypatch):
    assert "needs a GPU" in fault_of("triton", CPU, torch.float32)
    right = torch_step.latent_probs
    wrong = {
        "layers in the wrong order": lambda latents, *rest: right(latents.flip(0), *rest),
        "NaN": lambda *args: right(*args) * torch.nan,
        "a layer too few": lambda latents, *rest: (
            right(latents, *rest) * (torch.arange(len(latents)) > 0)[:, None, None]
        ),
    }
    for name, latent_probs in wrong.items():
        monkeypatch.setattr(torch_step, "latent_probs", latent_probs)
        assert "differs from plain torch" in fault_of("fused", CPU, torch.float32), name
