"""A child server is gone when nobody waits for it any more, and nobody else is taken for it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from led_sglang.serving import child
from led_sglang.serving.child import Server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A process that never becomes healthy."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    return Server(log=tmp_path / "log", module="sleeper", environment={"PYTHONPATH": str(tmp_path)})


def test_an_interrupt_while_it_starts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_is_listening", interrupt)
    monkeypatch.setattr(child, "START_LIMIT_S", 2.0)
    with pytest.raises(KeyboardInterrupt), server:
        raise AssertionError("it is not ready")
    assert server.process.poll() is not None


def test_a_server_that_is_never_ready(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_LIMIT_S", 0.0)
    with pytest.raises(RuntimeError, match="server not ready after"):
        server.wait_ready()
    assert server.process.poll() is not None


LISTENER = """
import sys, http.server
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""


def test_a_healthy_stranger_on_its_port_is_not_taken_for_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers were once given one port, and a test held one model's answers against the other model."""
    stranger = subprocess.Popen([sys.executable, "-c", LISTENER, "--port", str(server.port)])
    try:
        wait_healthy(server.url)
        monkeypatch.setattr(child, "START_LIMIT_S", 2.0)
        with pytest.raises(RuntimeError, match="server not ready after"):
            server.wait_ready()
    finally:
        stranger.kill()
        stranger.wait()


def test_its_own_answer_is_taken(tmp_path: Path) -> None:
    (tmp_path / "listener.py").write_text(LISTENER)
    with Server(log=tmp_path / "log", module="listener", environment={"PYTHONPATH": str(tmp_path)}) as server:
        assert httpx.get(server.url).status_code == 200


def test_the_callers_environment_holds_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub can be served by `reproduce --serve`, and with more threads than one."""

    (tmp_path / "tell.py").write_text("import json, os\nprint(json.dumps(dict(os.environ)))\n")

    def environment() -> dict[str, str]:
        """As the child tells it: read from outside, a process that has just been started has none yet."""
        server = Server(log=tmp_path / "log", module="tell", environment={"PYTHONPATH": str(tmp_path)})
        assert server.wait_exit() == 0, server.end_of_log()
        reported: dict[str, str] = json.loads(server.log.read_text())
        return reported

    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert environment()["OMP_NUM_THREADS"] == "1"
    assert "HF_HUB_OFFLINE" not in environment()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment()["OMP_NUM_THREADS"] == "3"


def wait_healthy(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(url)
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nobody at {url}")
