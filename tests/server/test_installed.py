"""A server from the installed wheel, in an empty folder, without the repository beside it."""

from pathlib import Path

import pytest

import led_sglang
from tests.server.clients import Client
from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def test_an_installed_wheel_serves(installed: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`led-sglang serve` as after `pip install led_sglang`: LED is on, and its files come from the wheel."""
    empty = installed / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = str(installed / "bin" / "python")
    with Server("serve", log=logs / "installed.log", module="led_sglang", python=python) as server:
        client = Client(server.url)
        info = client.get("/led/info")
        assert info["versions"]["led_sglang"] == led_sglang.__version__
        assert client.get("/get_model_info")["model_path"].startswith(str(installed))
        assert all(hook["verified"] for hook in info["hooks"].values())
        body = {
            "model": "led-embedded",
            "messages": [{"role": "user", "content": "What is 17 + 5 * 3?"}],
            "seed": 1,
            "custom_params": {"led": {"depth": 8}},
        }
        answer = client.post("/v1/chat/completions", body)
        assert "</think>" in answer["choices"][0]["message"]["content"]
    assert [path.name for path in empty.iterdir()] == ["led-sglang.log"]
