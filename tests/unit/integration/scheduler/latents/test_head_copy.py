"""`--led-head-lse fp8` in a server: refused without a weight, told, and as new as the weight."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import ServerConfig
from led_sglang.integration import release_support
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.memory import GraphSizes, Sizes, memory_plan
from led_sglang.integration.scheduler import handlers, runtime
from led_sglang.integration.scheduler.latents.lm_head import copy_for_lse
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops.fp8.rows import Fp8Rows
from led_sglang.ops.types import Head

FP8 = ServerConfig(head_lse="fp8")


def no_memory(copy: Fp8Rows, weight: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("no more")


def served(head: Head | None) -> Any:
    found: Any = SimpleNamespace(head=head, config=FP8, num_engine_head_steps=0)
    found.follow_weights = lambda: Runtime.follow_weights(found)
    return found


def test_a_head_without_a_weight_is_refused() -> None:
    head = Head(torch.empty(7, 0), 7, project=lambda rows: rows)
    with pytest.raises(CaptureError, match="--led-head-lse fp8 is not possible here: the LM head is quantised"):
        copy_for_lse(head)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_baselines_are_refused(backend: str) -> None:
    with pytest.raises(LedParamError, match=f"--led-head-lse fp8 needs --led-backend .*{backend}"):
        replace(FP8, backend=backend).check()
    ServerConfig(backend=backend).check()


def test_a_release_that_says_nothing_of_new_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_support, "version", lambda name: "0.5.17")
    with pytest.raises(CaptureError, match=r"--led-head-lse fp8 on SGLang 0\.5\.17: it needs 0\.5\.23"):
        release_support.refuse_release("--led-head-lse fp8")


def test_the_copy_follows_an_update_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph has its address."""
    weight = torch.randn(50, 8).bfloat16()
    head = Head(weight, 50)
    head = replace(head, lse_copy=copy_for_lse(head))
    assert head.lse_copy is not None
    place = head.lse_copy.codes.data_ptr()
    weight.copy_(torch.randn(50, 8) * 30)
    monkeypatch.setattr(runtime, "_runtime", served(head))
    handlers.weights_changed(None, None, True, "")  # type: ignore[arg-type]
    decoded = head.lse_copy.decoded(0, 50, torch.bfloat16)
    assert head.lse_copy.codes.data_ptr() == place
    assert ((decoded - weight).abs() <= weight.abs() / 16 + 1e-3 * weight.abs().amax()).all()


def test_a_copy_that_cannot_follow_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second passes then read the weight; the fault is counted by the hook's guard."""
    head = Head(torch.randn(50, 8), 50)
    current = served(replace(head, lse_copy=copy_for_lse(head)))
    monkeypatch.setattr(runtime, "_runtime", current)
    with monkeypatch.context() as patched:
        patched.setattr(Fp8Rows, "refresh", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            handlers.weights_changed(None, None, True, "")  # type: ignore[arg-type]
    assert current.head == head


@pytest.mark.parametrize("head", [None, Head(torch.randn(3, 2), 3)])
def test_an_update_without_a_copy(head: Head | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for current in (None, served(head)):
        monkeypatch.setattr(runtime, "_runtime", current)
        handlers.weights_changed(None, None, True, "")  # type: ignore[arg-type]


def test_what_it_takes_is_told() -> None:
    """389 MB and the rows' scales, of Qwen3-4B; at start, and by /led/info."""
    sizes = Sizes(16, 2560, 151936, 2, GraphSizes())
    parts = memory_plan(replace(FP8, num_layers=36), sizes).parts
    assert parts["fp8 head"] == 151936 * (2560 + 4)
    assert "fp8 head 389.6 MB" in memory_plan(replace(FP8, num_layers=36), sizes).text()
    assert memory_plan(ServerConfig(num_layers=36), sizes).parts["fp8 head"] == 0
    head = Head(torch.randn(50, 8), 50)
    status = Runtime._head_status(served(replace(head, lse_copy=copy_for_lse(head))))
    assert status == {"kind": "weight", "engine_steps": 0, "lse": "fp8", "copy_bytes": 50 * (8 + 4)}
