"""Which backend a server uses, and what it says where it is not the one expected."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.latents.capture import CaptureError
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops import Backend, Head
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.backends.triton import TritonBackend
from led_sglang.ops.types import ALIGNMENT

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
CUDA_LIKE = torch.device("meta")  # where the host may not look, and there is one
V = 40
TORCH = TorchBackend(allows_dynamic_shapes=False)


def chosen(*arguments: Any) -> tuple[str, str | None]:
    """The name that /led/info reports, and the fault."""
    backend, fault = runtime.backend_for(*arguments)
    return backend.public_name, fault


def test_on_a_gpu_auto_is_triton_if_it_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "fault_of", lambda backend, device, dtype: None)
    assert chosen("auto", CUDA, torch.bfloat16) == ("triton", None)
    monkeypatch.setattr(runtime, "fault_of", lambda backend, device, dtype: f"{backend.name} is off by 0.5")
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", CUDA, torch.bfloat16) == ("fused", "triton is off by 0.5")
    assert "triton is off by 0.5" in caplog.text


def test_what_was_asked_for_is_used_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "fault_of", lambda *_: pytest.fail("nothing to compare"))
    assert chosen("auto", CPU, torch.float32) == ("compiled", None)
    for backend in ("eager", "fused", "triton"):
        assert chosen(backend, CUDA, torch.float16) == (backend, None)


class Kernels(TritonBackend):
    """Which calls of it were made, in `seen`."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def warm_up(self, head: Head, latents: torch.Tensor, *rest: Any) -> None:
        self.seen.append(f"run {rest[:3]}")


def runtime_of(requested: str, head: Head, backend: Backend) -> Runtime:
    """One at the first use of its head on a GPU."""
    made = object.__new__(Runtime)
    device = torch.device("cpu")
    config = SimpleNamespace(backend=requested, max_top_k=64)
    capture = SimpleNamespace(states=torch.zeros(4, 9, 2))
    model_config = SimpleNamespace(vocab_size=V)
    made.__dict__.update(
        config=config,
        backend=backend,
        backend_fault=None if backend.name == "triton" else "an earlier fault",
        runner=SimpleNamespace(model_config=model_config, dtype=torch.float32),
        num_led_layers=3,
        automaton=None,
        capture=capture,
        one_pass_state=OnePassState("auto", backend, 2, 9, device),
    )
    return made


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the kernels; the check finds `fault`."""
    seen: list[str] = []

    def check(backend: Backend, head: Head, latents: torch.Tensor, max_top_k: int) -> str | None:
        seen.append(f"check {backend.name} {tuple(latents.shape)} {max_top_k}")
        return "wrong" if head.scale == 2.0 else None

    monkeypatch.setattr(runtime, "fault_with", check)
    return seen


def test_the_served_head_decides_too(requested: list[str], caplog: pytest.LogCaptureFixture) -> None:
    right, wrong = Head(torch.zeros(V, 2), V), Head(torch.zeros(V, 2), V, scale=2.0)
    kernels = Kernels(requested)
    made = runtime_of("auto", right, kernels)
    made._warm_up(right)
    assert (made.backend, made.backend_fault) == (kernels, None)
    assert requested == ["check triton (3, 9, 2) 64", f"run ({V}, 9, 64)"]
    requested.clear()
    made = runtime_of("auto", wrong, kernels)
    with caplog.at_level(logging.WARNING):
        made._warm_up(wrong)
    assert (made.backend.public_name, made.backend_fault) == ("fused", "wrong")
    assert made.one_pass_state.backend is made.backend
    assert "wrong" in caplog.text and requested == ["check triton (3, 9, 2) 64"]
    requested.clear()
    made = runtime_of("triton", wrong, kernels)
    made._warm_up(wrong)
    assert made.backend is kernels and requested == [f"run ({V}, 9, 64)"], "what was asked for is used unasked"
    requested.clear()
    runtime_of("fused", wrong, TORCH)._warm_up(wrong)
    assert requested == []


def test_ranks_use_one_backend(requested: list[str]) -> None:
    """Also the rank whose own kernels are right; and a rank that found a fault earlier says so."""
    for others, own in (([0.0, 1.0], Kernels(requested)), ([1.0, 0.0], TORCH)):
        heard: list[float] = []

        def gather(flag: torch.Tensor, others: list[float] = others, heard: list[float] = heard) -> torch.Tensor:
            heard.append(float(flag))
            return torch.tensor(others)[:, None]

        head = Head(torch.zeros(V, 2), V, all_gather=gather)
        made = runtime_of("auto", head, own)
        made._warm_up(head)
        assert made.backend is made.one_pass_state.backend and made.backend_fault
        assert made.backend.public_name == "fused" and heard == [float(own is TORCH)]


def test_deterministic_inference_has_one_form() -> None:
    one_pass_state = OnePassState("auto", TritonBackend(), 3, 64, CUDA_LIKE, is_batch_invariant=True)
    assert one_pass_state.status()["batch_invariant"] and one_pass_state.status()["one_pass_up_to_rows"] == 0
    assert OnePassState("auto", TritonBackend(), 3, 64, CUDA_LIKE).status()["one_pass_up_to_rows"] == one_pass.MAX_ROWS
    with pytest.raises(CaptureError, match="--led-form one_pass is not possible with --enable-deterministic-inference"):
        OnePassState("one_pass", TritonBackend(), 3, 64, CUDA_LIKE, is_batch_invariant=True)


@pytest.mark.parametrize("max_rows", [1, 15, 16, 17, 258])
def test_a_servers_buffers_are_aligned(max_rows: int) -> None:
    """A kernel is compiled anew for pointers that are not, in the middle of a request."""
    one_pass_state = OnePassState("auto", TritonBackend(), 3, max_rows, torch.device("cpu"))
    rows = (
        one_pass_state.flags[0],
        one_pass_state.flags[1],
        one_pass_state.mask,
        one_pass_state.lse_ready,
        one_pass_state.tau,
        *one_pass_state.lse,
    )
    assert all(row.data_ptr() % ALIGNMENT == 0 and len(row) == max_rows for row in rows)
