"""Where the tests find `Server`, and a way to put a second plugin beside ours."""

import os
import signal
from pathlib import Path

import psutil

from led_sglang.serving.child import START_LIMIT_S, Server

__all__ = ["START_LIMIT_S", "Server", "install_plugin", "kill_scheduler"]


def install_plugin(folder: Path, register: str = "", target: str = "other_plugin:register") -> dict[str, str]:
    """The environment of a server that loads a second plugin: a distribution whose folder is on PYTHONPATH.

    register: the body of the function that SGLang calls; without it `target` names one of this repository.
    """
    info = folder / "other_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\nother = {target}\n")
    if register:
        lines = "".join(f"    {line}\n" for line in register.splitlines())
        (folder / "other_plugin.py").write_text(f"def register():\n{lines}")
    paths = (str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def kill_scheduler(server: Server, rank: str = "") -> list[psutil.Process]:
    """kill -9 the scheduler (of a rank, as "TP1"; of several one); returns all processes that must be gone soon."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    titles = {child.pid: " ".join(child.cmdline()) for child in children}
    found = [pid for pid, title in titles.items() if "sglang::scheduler" in title and rank in title]
    assert found, titles
    os.kill(found[-1], signal.SIGKILL)
    return children
