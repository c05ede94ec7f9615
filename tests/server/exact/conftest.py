"""One server for the tests of exactness: layers that disagree, and everything on that could disturb LED."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.clients import Client, sharp_server
from tests.server.servers import Server


@pytest.fixture(scope="package")
def exact_server(qwen3_folder: Path, logs: Path) -> Iterator[Server]:
    """Prefix cache on, prompts cut into chunks of 32 tokens, every layer captured; streams hold what is new only."""
    arguments = ("--chunked-prefill-size", "32", "--led-max-depth", "12", "--max-total-tokens", "8192")
    arguments += ("--incremental-streaming-output",)
    with sharp_server(qwen3_folder, logs / "exact.log", *arguments) as server:
        yield server


@pytest.fixture(scope="package")
def client(exact_server: Server) -> Client:
    return Client(exact_server.url)
