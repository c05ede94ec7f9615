"""Which backend a server uses, and what it says where it is not the one expected."""

import logging

import pytest
import torch

from led_sglang.integration.scheduler import served_backend
from led_sglang.integration.scheduler.served_backend import ServedBackend
from led_sglang.ops import Head
from led_sglang.ops.backends.torch import TorchBackend

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
V = 40


class Kernels(TorchBackend):
    """As much of the Triton backend as its choice needs; notes what it is told to run."""

    name, public_name = "triton", "triton"
    seen: list[str] = []  # noqa: RUF012, reset by the fixture

    def prepare(self) -> None:
        """Nothing is compiled here."""

    def warm_up(self, head: Head, latents: torch.Tensor, *sizes: object) -> None:
        self.seen.append(f"run {sizes[:3]}")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the kernels; the check with the head finds a fault where its scale is 2."""
    monkeypatch.setattr(Kernels, "seen", [])

    def check(backend: object, head: Head, latents: torch.Tensor, max_top_k: int) -> str | None:
        Kernels.seen.append(f"check {tuple(latents.shape)} {max_top_k}")
        return "wrong" if head.scale == 2.0 else None

    def choose(name: str, device: torch.device) -> TorchBackend:
        if device.type == "cuda" and name in ("auto", "triton"):
            return Kernels(allows_dynamic_shapes=False)
        return TorchBackend(allows_dynamic_shapes=device.type == "cpu")

    monkeypatch.setattr(served_backend, "backend_for", choose)
    monkeypatch.setattr(served_backend, "fault_of", lambda *_: None)
    monkeypatch.setattr(served_backend, "fault_with", check)
    return Kernels.seen


def warm_up(served: ServedBackend, head: Head) -> None:
    served.warm_up(head, torch.zeros(3, 9, 2), V, 9, 64, None)


def test_on_a_gpu_auto_is_triton_if_it_agrees_with_torch(
    kernels: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedBackend("auto", CUDA, torch.bfloat16)
    assert (served.backend.name, served.fault) == ("triton", None)
    monkeypatch.setattr(served_backend, "fault_of", lambda *_: "off by 0.5")
    with caplog.at_level(logging.WARNING):
        served = ServedBackend("auto", CUDA, torch.bfloat16)
    assert (served.backend.name, served.fault) == ("torch", "off by 0.5") and "off by 0.5" in caplog.text


def test_what_was_requested_is_used_unchecked(kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_backend, "fault_of", lambda *_: pytest.fail("nothing to compare"))
    for requested, device, name in (("auto", CPU, "torch"), ("fused", CUDA, "torch"), ("triton", CUDA, "triton")):
        served = ServedBackend(requested, device, torch.float16)
        assert (served.backend.name, served.fault) == (name, None)


def test_the_served_head_decides_too(kernels: list[str], caplog: pytest.LogCaptureFixture) -> None:
    right, wrong = Head(torch.zeros(V, 2), V), Head(torch.zeros(V, 2), V, scale=2.0)
    served = ServedBackend("auto", CUDA, torch.float32)
    warm_up(served, right)
    assert (served.backend.name, served.fault) == ("triton", None)
    assert kernels == ["check (3, 9, 2) 64", f"run ({V}, 9, 64)"]
    kernels.clear()
    with caplog.at_level(logging.WARNING):
        warm_up(served, wrong)
    assert (served.backend.name, served.fault) == ("torch", "wrong")
    assert "wrong" in caplog.text and kernels == ["check (3, 9, 2) 64"]
    kernels.clear()
    served = ServedBackend("triton", CUDA, torch.float32)
    warm_up(served, wrong)
    assert served.backend.name == "triton" and kernels == [f"run ({V}, 9, 64)"], "what was requested is used unchecked"
    kernels.clear()
    warm_up(ServedBackend("fused", CUDA, torch.float32), wrong)
    assert kernels == []


def test_ranks_use_one_backend(kernels: list[str]) -> None:
    """Also the rank whose own kernels are right; and a rank that found a fault earlier says so."""
    for others, earlier in (([0.0, 1.0], None), ([1.0, 0.0], "an earlier fault")):
        heard: list[float] = []

        def gather(flag: torch.Tensor, others: list[float] = others, heard: list[float] = heard) -> torch.Tensor:
            heard.append(float(flag))
            return torch.tensor(others)[:, None]

        served = ServedBackend("auto", CUDA, torch.float32)
        if earlier is not None:
            served.fault = earlier
            served._use_torch()
        warm_up(served, Head(torch.zeros(V, 2), V, all_gather=gather))
        assert served.backend.name == "torch" and served.fault
        assert heard == [float(earlier is not None)]
