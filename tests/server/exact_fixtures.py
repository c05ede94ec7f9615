"""Checkpoints and servers of the tests of exactness, each made once a session.

A test module takes them with `pytest_plugins`, not by importing names: each module would then start its own server.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import checkpoints
from tests.server.asking import Client, Oracle, sharp_server
from tests.server.launching import Server


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def qwen3_folder(checkpoint_folder: Path) -> Path:
    return checkpoints.build("qwen3", checkpoint_folder / "qwen3")


@pytest.fixture(scope="session")
def oracle(qwen3_folder: Path) -> Oracle:
    return Oracle(qwen3_folder)


@pytest.fixture(scope="session")
def exact_server(qwen3_folder: Path, logs: Path) -> Iterator[Server]:
    """Prefix cache on, prompts cut into chunks of 32 tokens, every layer captured."""
    arguments = ("--chunked-prefill-size", "32", "--led-max-depth", "12", "--max-total-tokens", "8192")
    with sharp_server(qwen3_folder, logs / "exact.log", *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def client(exact_server: Server) -> Client:
    return Client(exact_server.url)
