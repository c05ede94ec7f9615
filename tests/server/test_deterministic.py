"""--enable-deterministic-inference: SGLang refuses it for the CPU's attention; its seeded sampler works with LED.

SGLang's list of deterministic attention backends has none for the CPU, and its batch-invariant kernels need an
accelerator. A plugin of the test adds ours to the list and leaves the kernels out, so that the rest runs: the engine's
seeded sampling, and LED's beside it.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.server import fault_plugin
from tests.server.asking import Client, Request, thinking_prompt
from tests.server.checkpoints import CLOSE_ID
from tests.server.launching import Server
from tests.server.recompute import Asked

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]
FLAG = "--enable-deterministic-inference"


def register() -> None:
    """The plugin."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import DETERMINISTIC_ATTENTION_BACKEND_CHOICES

    HookRegistry.register("sglang.srt.batch_invariant_ops.enable_batch_invariant_mode", lambda: None, HookType.REPLACE)
    DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")


def test_one_seed_is_one_text_beside_others(logs: Path, tmp_path: Path) -> None:
    environment = fault_plugin.install(tmp_path / "plugin", "tests.server.test_deterministic:register")
    leaving = Asked(temperature=1.0, logit_bias={CLOSE_ID: 6.0})
    requests = [Request(thinking_prompt(i), leaving, num_tokens=32, seed=i) for i in range(6)]
    with Server(FLAG, log=logs / "deterministic.log", environment=environment) as server:
        client = Client(server.url)
        alone = [client.generate(request) for request in requests]
        together = client.together(requests)
        other = client.generate(replace(requests[0], seed=99))
        siblings = client.samples(requests[1], 3)
        counters = client.get("/led/info")["counters"]
    assert [reply.output_ids for reply in together] == [reply.output_ids for reply in alone]
    assert other.output_ids != alone[0].output_ids
    assert len({tuple(reply.output_ids) for reply in siblings}) == 3
    flags = [flag for reply in alone for flag in reply.meta["led_think"]]
    assert any(flags) and not all(flags), "the phase was never left: the engine's seeded sampling was not tried"
    assert counters["led_tokens"] > 0 == counters["step_failures"] == counters["fallbacks"]
