"""Which backend a server uses, and what it says where it is not the one expected."""

import logging

import pytest
import torch

from led_sglang.integration.scheduler import runtime

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_on_a_gpu_auto_is_triton_if_it_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "fault_of", lambda backend, device, dtype: None)
    assert runtime.backend_for("auto", CUDA, torch.bfloat16) == ("triton", None)
    monkeypatch.setattr(runtime, "fault_of", lambda backend, device, dtype: f"{backend} is off by 0.5")
    with caplog.at_level(logging.WARNING):
        assert runtime.backend_for("auto", CUDA, torch.bfloat16) == ("fused", "triton is off by 0.5")
    assert "triton is off by 0.5" in caplog.text


def test_what_was_asked_for_is_used_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "fault_of", lambda *_: pytest.fail("nothing to compare"))
    assert runtime.backend_for("auto", CPU, torch.float32) == ("compiled", None)
    for backend in ("eager", "fused", "triton"):
        assert runtime.backend_for(backend, CUDA, torch.float16) == (backend, None)
