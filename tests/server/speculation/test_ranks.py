"""Two ranks that verify drafts accept the same, or the server stops with the reason."""

import contextlib
from pathlib import Path

import pytest

from led_sglang.cli.http_client import ServerError
from tests.server import fault_plugin
from tests.server.clients import Client, Request, sharp_server, thinking_prompt
from tests.server.fault_plugin import SEEDS
from tests.server.speculation.cases import ngram

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
REASON = "LED: the tensor-parallel ranks disagree about noise or tokens"


@pytest.mark.parametrize("fault", ["other noise", "other tokens"])
def test_ranks_that_part(fault: str, qwen3_folder: Path, logs: Path, tmp_path: Path) -> None:
    environment = {**fault_plugin.install(tmp_path / "plugin"), "SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"}
    arguments = ("--tp", "2", "--max-total-tokens", "2048", "--speculative-algorithm", "NGRAM", *ngram(4, 2))
    log = logs / f"verify {fault}.log"
    with sharp_server(qwen3_folder, log, *arguments, environment=environment) as server:
        client = Client(server.url)
        fine = client.generate(Request(thinking_prompt(1), num_tokens=6, seed=1))
        assert len(fine.output_ids) == 6 and fine.meta["led_stats"]["led_tokens"] == 6
        with contextlib.suppress(ServerError):  # the connection may break, or be refused by then
            client.generate(Request(thinking_prompt(1), num_tokens=12, seed=SEEDS[fault]))
        assert server.process.wait(60) != 0
        assert REASON in server.end_of_log(20000)
