"""What the README shows: its request, against the server that `make serve` starts, and every one of its commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.quick]
README = Path(__file__).parents[3] / "README.md"


def python_block() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


def printed_answer() -> str:
    found = re.search(r"<!-- answer:begin -->\n```\n(.*?)\n```\n<!-- answer:end -->", README.read_text(), re.DOTALL)
    assert found is not None, "the README does not print the request's answer"
    return found.group(1)


def test_the_readmes_request_runs_and_gives_the_printed_answer(embedded_server: Server) -> None:
    program = python_block().replace("http://127.0.0.1:30000", embedded_server.url)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    said, printed = answers(run.stdout), answers(printed_answer())
    assert len(said) == len(printed) == 2
    # Without LED a seed is not heeded, and a sample may be wrong. With it the thought may differ in its last bits on
    # another CPU; the sum may not.
    assert all(re.search(r"\d", answer) for answer in said)
    assert said[1] == printed[1]


def answers(text: str) -> list[str]:
    """What follows each thought, to the end of its paragraph."""
    return [part.strip().splitlines()[0] for part in text.split("</think>")[1:]]


HERE = "run here against the server"
ELSEWHERE = {  # a command of the README: where it runs
    "git clone": "every CI run begins with it",
    "make serve": "tests/server/embedded/conftest.py, as `led-sglang serve`",
    "make docs": "tests/unit/docs/test_site.py",
    "make test": "CI",
    "pip install .": "tests/unit/test_package.py",
    "led-sglang serve --model-path": "tests/unit/docs/test_documented_starts.py reads it; it needs a GPU",
    "docker": "tests/unit/deploy/test_deploy.py reads it; it needs a container engine and a GPU",
    "led-sglang check": HERE,
    "led-sglang trace": HERE,
}


def commands() -> list[str]:
    """Of the shell blocks and of the text."""
    text = README.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split(" && ")]
    inline = re.findall(
        r"`((?:make|led-sglang|python|pip|docker) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    )
    return [line for line in [*lines, *inline] if line and not line.startswith("cd ")]


def test_every_command_of_the_readme_runs_somewhere() -> None:
    lost = [command for command in commands() if not any(command.startswith(known) for known in ELSEWHERE)]
    assert lost == []
    assert [known for known in ELSEWHERE if not any(command.startswith(known) for command in commands())] == []


def test_the_readmes_commands_that_ask_a_server_run(embedded_server: Server) -> None:
    asked = [c for c in commands() if any(c.startswith(k) for k, where in ELSEWHERE.items() if where == HERE)]
    assert len(asked) >= 2
    for command in asked:
        words = command.replace("http://127.0.0.1:30000", embedded_server.url)
        words = words.replace("led-sglang", f"{sys.executable} -m led_sglang", 1)
        words += "" if embedded_server.url in words else f" --url {embedded_server.url}"
        env = {**os.environ, "PYTHONPATH": str(README.parent)}
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=300, env=env)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_the_readme_is_short_and_in_order() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    marks = ["images/exploration.png", "## Quick start", "LED off and on", "## Features", "**Status.**", "## Results"]
    marks += ["## How it works", "led_sglang/      config", "## Documentation", "CITATION.cff"]
    assert sorted(marks, key=text.index) == marks
    results = text.split("## Results")[1].split("##")[0]
    assert sum(line.startswith("|") for line in results.splitlines()) <= 2 + 5


def test_the_start_ends_in_a_block_whose_request_is_answered(embedded_server: Server) -> None:
    """`make serve` is `led-sglang serve`: what the terminal of this server shows, and the command that it gives."""
    terminal, log = embedded_server.log.read_text(), embedded_server.log.with_name("embedded-engine.log").read_text()
    for words in (
        f"{embedded_server.url}/v1",
        f"{embedded_server.url}/led/",
        "led-embedded",
        "led; on",
        str(embedded_server.log.parent),
    ):
        assert words in terminal
    assert "UserWarning" in log and "UserWarning" not in terminal
    assert len(terminal.split("Ctrl-C")[0].splitlines()) < 30, "stages and the block"
    [line] = [line for line in terminal.splitlines() if "curl" in line]
    done = subprocess.run(["bash", "-c", line.split("try", 1)[1]], capture_output=True, text=True, timeout=300)
    assert "32" in done.stdout, done.stdout + done.stderr
