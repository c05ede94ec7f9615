"""What a soak watches from outside: the memory of the server's processes, its log, its own numbers."""

import re
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from led_sglang.cli import http_client

TROUBLE = re.compile(
    r"Traceback|\bERROR\b|[A-Z]\w*(Error|Exception)\b|\bleak|LED (step failed|could not)", re.IGNORECASE
)
PLANNED = "Request is disconnected from the client side"  # what SGLang logs of a client that leaves before an answer
IDLE_LIMIT_S = 120.0


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants."""
    root = psutil.Process(pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def troubles(log: Path, start: int) -> list[str]:
    """Lines of the log behind byte `start` that speak of an error; those of refused requests (INFO) do not."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if TROUBLE.search(line) and PLANNED not in line]


def wait_idle(url: str) -> None:
    """SGLang flushes its cache only when idle, and checks its pools for leaks then. Raises TimeoutError."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while (answer := httpx.post(f"{url}/flush_cache", timeout=60)).status_code != 200:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server is still busy after {IDLE_LIMIT_S} s: {answer.text}")
        time.sleep(0.2)


def counters(url: str) -> dict[str, Any]:
    found: dict[str, Any] = http_client.get_object(f"{url}/led/info")["counters"]
    return found


def metrics(url: str) -> dict[str, float]:
    """Every sample of /metrics by its name, labels included for our own, summed over labels for SGLang's."""
    values: dict[str, float] = {}
    for line in http_client.get(f"{url}/metrics").text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        name = name if name.startswith("led_sglang") else name.partition("{")[0]
        values[name] = values.get(name, 0.0) + float(value)
    return values
