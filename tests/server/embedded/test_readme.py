"""The README's own request, run as it stands there, against the server that `make serve` starts."""

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
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    # The last line is the answer proper; thinking may differ in its last bits on another CPU, the sum may not.
    assert run.stdout.strip().splitlines()[-1] == printed_answer().strip().splitlines()[-1]
    assert "</think>" in run.stdout
