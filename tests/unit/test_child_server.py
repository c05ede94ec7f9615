"""A child server is gone when nobody waits for it any more."""

from pathlib import Path

import pytest

from led_sglang import child_server
from led_sglang.child_server import Server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A process that never becomes healthy."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    return Server(log=tmp_path / "log", module="sleeper", environment={"PYTHONPATH": str(tmp_path)})


def test_an_interrupt_while_it_starts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child_server.httpx, "get", interrupt)
    with pytest.raises(KeyboardInterrupt), server:
        raise AssertionError("it is not ready")
    assert server.process.poll() is not None


def test_a_server_that_is_never_ready(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_server, "START_LIMIT_S", 0.0)
    with pytest.raises(RuntimeError, match="server not ready after"):
        server.wait_ready()
    assert server.process.poll() is not None
