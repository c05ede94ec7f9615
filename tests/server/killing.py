"""Clients that send on while a process of the server is killed: what they get, and for how long they wait."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import httpx

NUM_CLIENTS = 12
ENDS_S = 120.0  # none waits longer than that after the death: SGLang keeps its other ranks for a minute, for dumps
LOADED_S = 5.0  # before it


def kill_under_load(
    url: str, body: dict[str, Any], text: list[int], kill: Callable[[], object], stop_s: float | None = None
) -> int:
    """Every answer has the text of a whole one; every client's first error comes after the death, and soon.

    stop_s: clients without an error stop so long after the death; None: there must be none. Returns how many there are.
    """
    is_answered, is_killed, is_over = threading.Event(), threading.Event(), threading.Event()

    def attempt() -> httpx.Response | None:
        """None: an error, which the client is told; it may not wait for long."""
        with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
            answer = httpx.post(f"{url}/generate", json=body, timeout=ENDS_S)
            return answer if answer.status_code == 200 else None
        return None

    def send_on(_: int) -> float | None:
        """Until the first error: when it came."""
        while not is_over.is_set():
            answer = attempt()
            if answer is None:
                assert is_killed.is_set(), "an error before anything was killed"
                return time.monotonic()
            assert answer.json()["output_ids"] == text
            is_answered.set()
        return None

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(send_on, i) for i in range(NUM_CLIENTS)]
        try:
            time.sleep(LOADED_S)
            assert is_answered.wait(ENDS_S), "no answer before anything was killed"
            is_killed.set()
            kill()
            killed = time.monotonic()
            wait(clients, 2 * ENDS_S if stop_s is None else stop_s)
        finally:
            is_over.set()
        outcomes = [client.result() for client in clients]
    assert all(end is None or end < killed + ENDS_S for end in outcomes)
    num_spared = outcomes.count(None)
    assert stop_s is not None or num_spared == 0
    return num_spared
