"""The embedded model as `make serve` starts it, one server for this folder, and others to hold against it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.servers import Server


@pytest.fixture(scope="package")
def embedded_server(logs: Path) -> Iterator[Server]:
    """The embedded model with LED on. `log` is what the terminal shows; the engine's is `embedded-engine.log`."""
    front = ("serve", "--led-log", str(logs / "embedded-engine.log"))
    with Server(*front, "--enable-metrics", log=logs / "embedded.log", module="led_sglang") as server:
        yield server


@pytest.fixture(scope="module")
def stock_server(logs: Path) -> Iterator[Server]:
    """The embedded model on stock SGLang: no hook installed."""
    with Server("--led", "disabled", log=logs / "stock.log") as server:
        yield server


ROOT_PATH = "/llm"


class Spare:
    """A server whose weights tests may replace and which they may kill; the next test that asks gets a live one.

    It believes to be behind a proxy that serves it under a prefix.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: Server | None = None

    def get(self) -> Server:
        if self._server is None or self._server.process.poll() is not None:
            self._server = Server("--fastapi-root-path", ROOT_PATH, log=self._log).wait_ready()
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


@pytest.fixture(scope="package")
def spare(logs: Path) -> Iterator[Spare]:
    spare = Spare(logs / "spare.log")
    yield spare
    spare.stop()


@pytest.fixture
def spare_server(spare: Spare) -> Server:
    """The embedded model with LED on, alive; with any weights of its shape."""
    return spare.get()
