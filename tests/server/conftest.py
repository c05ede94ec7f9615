"""Servers shared by all tests of this folder: one start each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.launching import Server


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def embedded_server(logs: Path) -> Iterator[Server]:
    """The embedded model with LED on, as `make serve` starts it."""
    with Server("--enable-metrics", log=logs / "embedded.log") as server:
        yield server


@pytest.fixture(scope="session")
def stock_server(logs: Path) -> Iterator[Server]:
    """The embedded model on stock SGLang: no hook installed."""
    with Server("--led", "disabled", log=logs / "stock.log") as server:
        yield server
