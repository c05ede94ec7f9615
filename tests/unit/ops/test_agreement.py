"""A backend is trusted on a machine once it has done there what plain torch does."""

from pathlib import Path

import pytest
import torch
from elsewhere import names, outcomes

from led_sglang.ops import fused
from led_sglang.ops.agreement import fault_of

CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("agreement_checks.py")


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    pytest.importorskip("triton")
    return outcomes(SCRIPT, TRITON_INTERPRET="1")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_of_the_kernels(check, faults):
    assert check in faults, "it did not run"
    assert not faults[check], "\n".join(faults[check])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["fused", "compiled"])
def test_backends_that_are_right_have_no_fault(backend, dtype):
    assert fault_of(backend, CPU, dtype) is None


def test_what_raises_or_differs_is_told(monkeypatch):
    assert "needs a GPU" in fault_of("triton", CPU, torch.float32)
    right = fused.latent_probs
    wrong = {
        "layers in the wrong order": lambda latents, *rest: right(latents.flip(0), *rest),
        "NaN": lambda *args: right(*args) * torch.nan,
        "a layer too few": lambda latents, *rest: (
            right(latents, *rest) * (torch.arange(len(latents)) > 0)[:, None, None]
        ),
    }
    for name, latent_probs in wrong.items():
        monkeypatch.setattr(fused, "latent_probs", latent_probs)
        assert "differs from plain torch" in fault_of("fused", CPU, torch.float32), name
