"""The tests of exactness, unchanged, on servers that speculate: every traced number of every accepted token."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.clients import Client, sharp_server
from tests.server.exact.exactness import Exactness
from tests.server.speculation.cases import ngram, shape

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
# The model drafts for itself, so that drafts are right wherever LED takes the likeliest token; NGRAM's seldom are.
SERVERS = {
    "STANDALONE tree": ("STANDALONE", shape(3, 3, 8), 1),
    "NGRAM tree, two ranks": ("NGRAM", ngram(6, 2), 2),
}


@pytest.fixture(scope="module", params=SERVERS)
def client(request: pytest.FixtureRequest, qwen3_folder: Path, logs: Path) -> Iterator[Client]:
    """As tests/server/exact/conftest.py's."""
    algorithm, options, num_ranks = SERVERS[request.param]
    arguments = ("--chunked-prefill-size", "32", "--led-max-depth", "12", "--max-total-tokens", "8192")
    arguments += ("--incremental-streaming-output", "--speculative-algorithm", algorithm, *options)
    if algorithm == "STANDALONE":
        arguments += ("--speculative-draft-model-path", str(qwen3_folder))
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"} if num_ranks > 1 else None
    log = logs / f"exact {request.param}.log"
    arguments += ("--tp", str(num_ranks)) if num_ranks > 1 else ()
    with sharp_server(qwen3_folder, log, *arguments, environment=environment) as server:
        yield Client(server.url)


@pytest.fixture(scope="module", autouse=True)
def _drafts_are_accepted(client: Client) -> Iterator[None]:
    """What is tested here is worth nothing where no draft is ever accepted."""
    yield
    counters = client.get("/led/info")["counters"]
    assert counters["step_failures"] == 0 and counters["fallbacks"] == 0


class TestWithSpeculation(Exactness):
    pass
