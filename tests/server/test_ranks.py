"""Two tensor-parallel ranks that part are stopped, with the reason, and do not wait for each other for ever."""

import contextlib
from pathlib import Path

import pytest

from led_sglang.cli.http_client import ServerError
from tests.server import fault_plugin
from tests.server.clients import Client, Request, sharp_server, thinking_prompt
from tests.server.fault_plugin import SEEDS

pytestmark = pytest.mark.server


PROMPT = thinking_prompt(1)
APART = {
    "other noise": "LED: the tensor-parallel ranks disagree about noise or tokens",
    "decide alone": "LED: a step failed on 1 of 2 tensor-parallel ranks",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", APART)
def test_ranks_that_part(fault: str, qwen3_folder: Path, logs: Path, tmp_path: Path) -> None:
    environment = {**fault_plugin.install(tmp_path / "plugin"), "SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"}
    arguments = ("--tp", "2", "--max-total-tokens", "2048")
    with sharp_server(qwen3_folder, logs / f"{fault}.log", *arguments, environment=environment) as server:
        client = Client(server.url)
        # What fails on both ranks costs the steps that fail, and no more.
        reply = client.generate(Request(PROMPT, num_tokens=6, seed=SEEDS["decide"]))
        assert len(reply.output_ids) == 6
        assert client.get("/led/info")["counters"]["step_failures"] == 3
        with contextlib.suppress(ServerError):  # the connection may break, or be refused by then
            client.generate(Request(PROMPT, num_tokens=8, seed=SEEDS[fault]))
        assert server.process.wait(60) != 0
        assert APART[fault] in server.end_of_log(20000)
