"""A backend is trusted on a machine once it has done there what plain torch does."""

from pathlib import Path

import pytest
import torch

from led_sglang.ops import Head
from led_sglang.ops.backends import torch_step
from led_sglang.ops.self_test import fault_of, fault_with
from tests.unit.ops.cases.processes import names, require

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("self_test_checks.py")


@pytest.mark.parametrize("check", names(SCRIPT))
def test_of_the_kernels(check: str) -> None:
    require(SCRIPT, check, TRITON_INTERPRET="1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "numba"])
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
        assert "differs from plain torch" in fault_of("torch", CPU, torch.float32), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_layers", [1, 7])
def test_layers_matter_at_the_size_of_a_real_vocabulary(num_layers, dtype, monkeypatch):
    """Where a random state would give the candidates next to nothing, right or wrong."""
    weight = (torch.randn(151936, 64, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
    head, latents = Head(weight, len(weight)), torch.empty(num_layers, 1, 64, dtype=dtype)
    assert fault_with("torch", head, latents, 256) is None
    right = torch_step.latent_probs
    for factor in (2.0, 0.5, 0.0):
        monkeypatch.setattr(torch_step, "latent_probs", lambda *args, factor=factor: right(*args) * factor)
        fault = fault_with("torch", head, latents, 256)
        assert fault is not None and float(fault.split("differs from plain torch by ")[1].split()[0]) > 6e-3, fault
