"""The pages of docs/how-to: what they show runs as it stands, against the server that `make serve` starts.

A block behind `<!-- run -->` runs; `<!-- output -->` has lines that its output contains; `<!-- sends: NAME -->` runs
where that package is installed, and has to send what `<!-- body: NAME -->` shows, which is sent in any case.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx
import pytest

from tests.server.servers import Server

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "how-to"
BLOCK = re.compile(r"<!-- (run|output|sends|body)(?:: (\w+))? -->\n```(\w*)\n(.*?)```", re.DOTALL)
URL = "http://127.0.0.1:30000"


class Block(NamedTuple):
    page: str
    kind: str
    name: str
    language: str
    text: str


def blocks(*kinds: str) -> list[Block]:
    found = (
        Block(p.stem, *match.groups("")) for p in sorted(FOLDER.glob("*.md")) for match in BLOCK.finditer(p.read_text())
    )
    return [block for block in found if block.kind in kinds]


RUN = [pytest.param(block, id=f"{block.page}-{i}") for i, block in enumerate(blocks("run"))]
BODIES = [pytest.param(block, id=block.name) for block in blocks("body")]
SENDS = [pytest.param(block, id=block.name) for block in blocks("sends")]


def run(block: Block, url: str, folder: Path) -> str:
    """Standard output; in a folder of its own, from which the package's files are reached by their paths.

    `led-sglang` is this checkout's, whenever the environment was made.
    """
    (folder / "led_sglang").symlink_to(ROOT / "led_sglang")
    script = folder / "led-sglang"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m led_sglang "$@"\n')
    script.chmod(0o755)
    text = block.text.replace(URL, url)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def led_tokens(url: str) -> int:
    return int(httpx.get(f"{url}/led/info").json()["counters"]["led_tokens"])


def test_the_pages_that_show_a_command_run_it() -> None:
    shown = {block.page for block in blocks("run")}
    assert shown >= {"clients", "is-led-on", "load-test", "depth-and-k", "migrate-from-the-fork"}
    assert {block.name for block in blocks("sends")} == {block.name for block in blocks("body")} != set()


def test_the_page_of_the_api_names_what_info_has(embedded_server: Server) -> None:
    """Every key of the answer down to two levels; those of the hooks, methods and reasons are values."""
    info = httpx.get(f"{embedded_server.url}/led/info").json()
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8").partition("## GET /led/info")[2]
    names = {name: value for name, value in info.items() if name != "hooks"}
    for part in ("start_check", "markers", "form", "head", "counters", "limits"):
        names |= names[part]
    assert not [name for name in names if f'"{name}"' not in page]


@pytest.mark.parametrize("block", RUN)
def test_what_a_page_shows_runs(block: Block, embedded_server: Server, tmp_path: Path) -> None:
    before = led_tokens(embedded_server.url)
    said = run(block, embedded_server.url, tmp_path)
    assert said.strip()
    if URL in block.text:
        assert led_tokens(embedded_server.url) > before, "LED decoded none of it"
    for output in blocks("output"):
        if output.page == block.page:
            lines = [" ".join(line.split()) for line in said.splitlines()]
            assert [line for line in output.text.splitlines() if " ".join(line.split()) not in lines] == []


@pytest.mark.parametrize("block", BODIES)
def test_what_another_client_sends_is_decoded_with_led(block: Block, embedded_server: Server) -> None:
    body = json.loads(block.text) | {"return_meta_info": True}
    answer = httpx.post(f"{embedded_server.url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    meta = answer["choices"][0]["meta_info"]
    assert meta["led_params"]["depth"] == 8
    assert meta["led_stats"]["led_tokens"] > 0


class Recorder:
    """Passes chat requests on to a server and keeps their bodies."""

    def __init__(self, url: str) -> None:
        self.bodies: list[Any] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                recorder.bodies.append(json.loads(body))
                headers = {"content-type": "application/json"}
                answer = httpx.post(url + self.path, content=body, headers=headers, timeout=60)
                self.send_response(answer.status_code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def recorder(embedded_server: Server) -> Iterator[Recorder]:
    recorder = Recorder(embedded_server.url)
    yield recorder
    recorder.close()


@pytest.mark.parametrize("block", SENDS)
def test_another_client_sends_what_the_page_says(block: Block, recorder: Recorder, tmp_path: Path) -> None:
    if importlib.util.find_spec(block.name) is None:
        pytest.skip(f"{block.name} is not installed; the body that it sends has a test")
    assert "32" in run(block, recorder.url, tmp_path)
    [body] = [json.loads(b.text) for b in blocks("body") if b.name == block.name]
    assert recorder.bodies == [body]
