"""Two tensor-parallel ranks that disagree are stopped, with the reason, and do not wait for each other for ever."""

import contextlib
from pathlib import Path

import httpx
import pytest

from tests.server import fault_plugin
from tests.server.asking import Client, Request, sharp_server, thinking_prompt
from tests.server.fault_plugin import SEEDS

pytestmark = pytest.mark.server


@pytest.mark.timeout(600)
def test_a_rank_with_other_noise(qwen3_folder: Path, logs: Path, tmp_path: Path) -> None:
    environment = {**fault_plugin.install(tmp_path / "plugin"), "SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"}
    arguments = ("--tp", "2", "--max-total-tokens", "2048")
    with sharp_server(qwen3_folder, logs / "other_noise.log", *arguments, environment=environment) as server:
        client = Client(server.url)
        assert len(client.generate(Request(thinking_prompt(1), num_tokens=3, seed=1)).output_ids) == 3
        with contextlib.suppress(httpx.HTTPError):  # the connection may break, or be refused by then
            client.generate(Request(thinking_prompt(1), num_tokens=8, seed=SEEDS["other noise"]))
        assert server.process.wait(60) != 0
        assert "LED: the tensor-parallel ranks disagree about noise or tokens" in server.tail(20000)
