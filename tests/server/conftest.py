"""What every server test may ask: where logs go, and the checkpoint of the tests of exactness.

A folder is what shares a server: it starts with the folder's first test and stops with its last (scope="package").
"""

from pathlib import Path

import pytest

from tests.server import checkpoints
from tests.server.clients import Oracle


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def qwen3_folder(checkpoint_folder: Path) -> Path:
    return checkpoints.build("qwen3", checkpoint_folder / "qwen3")


@pytest.fixture(scope="session")
def oracle(qwen3_folder: Path) -> Oracle:
    return Oracle(qwen3_folder)
