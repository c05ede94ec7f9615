"""The front: what it shows of a server's start, its errors and its end. A small program acts as the server."""

import json
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from led_sglang.serving.announcement import ENV_PIPE, announce
from led_sglang.serving.front import block
from led_sglang.serving.ports import HeldPort

WHAT: dict[str, Any] = {
    "url": "http://127.0.0.1:30000",
    "model": "m",
    "methods": ["led", "dola"],
    "defaults": "on",
    "has_key": False,
}
SERVER = """
import http.server, sys, warnings
from led_sglang.serving.announcement import announce
warnings.warn("of another package")
print("[2026-11-30 19:19:33] Load weight begin. avail mem=1 GB", flush=True)
print("LED: backend x is not used here", flush=True)
announce(url="http://127.0.0.1:PORT", model="m", methods=["led"], defaults="on", has_key=False)
num_asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global num_asked
        num_asked += 1
        self.send_response(200 if num_asked > 2 else 503)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


def command(program: str, log: Path) -> list[str]:
    """A process that is the front of a server that is this program."""
    server = [sys.executable, "-c", textwrap.dedent(program)]
    front = f"import sys; from pathlib import Path; from led_sglang.serving import front\n" \
            f"sys.exit(front.serve({server!r}, Path({str(log)!r})))"  # fmt: skip
    return [sys.executable, "-c", front]


@contextmanager
def running(program: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(program, log), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


@pytest.fixture
def port() -> Iterator[int]:
    with HeldPort() as held:
        yield held.number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_ends_in_the_block_and_a_signal_ends_the_server(tmp_path: Path, port: int, number: int) -> None:
    log = tmp_path / "serve.log"
    with running(SERVER.replace("PORT", str(port)), log) as process:
        said = wait_for(process, "stop ")
        [server] = psutil.Process(process.pid).children()
        process.send_signal(number)
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + number
    assert not server.is_running()
    assert f"http://127.0.0.1:{port}/v1" in said and f"http://127.0.0.1:{port}/led/" in said and str(log) in said
    assert "LED: backend x is not used here" in said, "a warning of LED's own"
    assert "loads the weights" in said
    assert "of another package" not in said + rest and "of another package" in log.read_text()
    assert "stopped after" in rest


def test_a_refusal_is_shown_with_its_status(tmp_path: Path) -> None:
    program = "import sys; print('noise'); print('led_sglang: no such model', file=sys.stderr); sys.exit(2)"
    done = subprocess.run(command(program, tmp_path / "a.log"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "led_sglang: no such model" in done.stdout and "noise" not in done.stdout
    assert "ended with status 2" in done.stdout


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)], ids=["exit", "killed"]
)
def test_a_server_that_ends_without_a_word_leaves_the_end_of_its_log(tmp_path: Path, end: str, status: int) -> None:
    program = f"import os, sys; print('a'); print('the last words', flush=True); {end}"
    done = subprocess.run(command(program, tmp_path / "a.log"), capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert "the last words" in done.stdout and str(tmp_path / "a.log") in done.stdout


def test_a_second_server_does_not_write_into_the_firsts_log(tmp_path: Path, port: int) -> None:
    log = tmp_path / "serve.log"
    with running(SERVER.replace("PORT", str(port)), log) as first:
        wait_for(first, "stop ")
        kept = log.read_text()
        done = subprocess.run(command("print('second')", log), capture_output=True, text=True, timeout=60)
        assert log.read_text().startswith(kept)
    assert done.returncode == 0
    assert (tmp_path / "serve-2.log").read_text() == "second\n"
    assert "serve-2.log" in done.stdout


def test_no_server_outlives_a_front_that_was_killed(tmp_path: Path, port: int) -> None:
    with running(SERVER.replace("PORT", str(port)), tmp_path / "a.log") as process:
        wait_for(process, "stop ")
        [server] = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs([server], timeout=30)
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["serve", "--led-log", str(tmp_path / "file" / "serve.log")]
    done = subprocess.run([sys.executable, "-m", "led_sglang", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr and "Traceback" not in done.stderr


def test_the_block_has_a_request_that_is_one_command() -> None:
    said = block(WHAT, Path("out/serve.log"), 31.4)
    [line] = [line for line in said.splitlines() if "curl" in line]
    words = shlex.split(line.split("try", 1)[1])
    assert words[:2] == ["curl", "http://127.0.0.1:30000/v1/chat/completions"]
    assert json.loads(words[-1])["custom_params"] == {"led": True}
    assert "31 s" in said and "out/serve.log" in said and "led, dola; on" in said
    assert len(said.strip().splitlines()) <= 10, "a short block"


def test_the_block_of_a_server_with_a_key_of_stock_sglang_and_of_a_second_node() -> None:
    assert "Authorization: Bearer KEY" in block(WHAT | {"has_key": True}, Path("a"), 1)
    stock = block(WHAT | {"methods": None, "defaults": None}, Path("a"), 1)
    assert "stock SGLang" in stock and "/led/" not in stock and "custom_params" not in stock
    second = block(WHAT | {"url": None}, Path("a"), 1)
    assert "curl" not in second and "first node" in second


def test_without_a_front_nothing_is_announced(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.delenv(ENV_PIPE, raising=False)
    announce(url="http://127.0.0.1:1")
    assert capfd.readouterr() == ("", "")
