"""A verification's surroundings: the walk of the CPU platform, and the runtime that a test makes."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from led_sglang.cpu_platform.speculative import verification
from led_sglang.integration.scheduler import runtime
from tests.unit.integration.scheduler.speculation.world import Server


@pytest.fixture(autouse=True)
def _walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang has no `verify_tree_greedy_func` for a CPU; the platform puts its own there when a worker is made."""
    module = importlib.import_module("sglang.kernels.ops.speculative.spec_tree")
    monkeypatch.setattr(module, "verify_tree_greedy_func", verification.verify_tree_greedy)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def make(*args: Any, **kwargs: Any) -> Server:
        server = Server(*args, **kwargs)
        monkeypatch.setattr(runtime, "_runtime", server.runtime)
        return server

    return make
