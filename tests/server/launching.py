"""Where the tests find `Server`."""

import os
import signal

import psutil

from led_sglang.child_server import START_LIMIT_S, Server, free_port

__all__ = ["START_LIMIT_S", "Server", "free_port", "kill_scheduler"]


def kill_scheduler(server: Server, rank: str = "") -> list[psutil.Process]:
    """kill -9 the scheduler (of a rank, as "TP1"); returns all processes that must be gone soon."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    titles = {child.pid: " ".join(child.cmdline()) for child in children}
    found = [pid for pid, title in titles.items() if "sglang::scheduler" in title and rank in title]
    assert len(found) == 1, titles
    os.kill(found[0], signal.SIGKILL)
    return children
