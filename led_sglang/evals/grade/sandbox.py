"""Runs an untrusted Python program: bounded time, memory, processes, file size; no network; a temporary folder.

Every run ends in a `Run` with a status; nothing the program does raises here. Layers, as far as this machine permits:
rlimits; its own network and process namespace (`unshare`); seccomp and Landlock (`confine`); a Python audit hook.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

__all__ = ["OK", "Limits", "Run", "describe", "run"]

CONFINE = Path(__file__).with_name("confine.py")
OK, CRASHED, TIMEOUT, MEMORY, BLOCKED, TOO_MUCH_OUTPUT = (
    "ok",
    "crashed",
    "timeout",
    "memory",
    "blocked",
    "too_much_output",
)
KEPT_CHARS = 2000
USE_KERNEL = True  # False in a test of what is left on a machine whose kernel offers nothing


@dataclass(frozen=True)
class Limits:
    wall_s: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    num_processes: int = 64
    num_files: int = 64

    def as_rlimits(self) -> dict[str, int]:
        limits = {"CPU": int(self.wall_s) + 1, "AS": self.memory_bytes, "FSIZE": self.file_bytes}
        # NPROC counts all of a user's tasks and not this program's; the kernel does not hold root to it.
        limits["NPROC"] = self.num_processes + _num_own_tasks()
        return {**limits, "NOFILE": self.num_files, "CORE": 0}


@dataclass(frozen=True)
class Run:
    status: str
    stdout: str = ""
    stderr: str = ""  # its end
    wall_s: float = 0.0
    layers: dict[str, bool] = field(default_factory=dict)


def _num_own_tasks() -> int:
    count, mine = 0, os.getuid()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == mine:
                count += len(os.listdir(entry / "task"))
    return count


@lru_cache(maxsize=1)
def namespace_prefix() -> tuple[str, ...]:
    """Command prefix for a network and process namespace of its own; empty where this machine permits none."""
    unshare = shutil.which("unshare")
    isolation = ("--net", "--pid", "--ipc", "--fork", "--kill-child=KILL")
    if unshare is None:
        return ()
    for rights in ((), ("--user", "--map-root-user")):
        command = (unshare, *rights, *isolation)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*command, "true"], check=True, capture_output=True, timeout=10)
            return command
    return ()


def describe() -> dict[str, str]:
    """What holds a program on this machine, for the record of a run."""
    layers = run("print('held')").layers
    by_kernel = "syscall filter" if layers.get("syscalls") else ""
    network = " and ".join(filter(None, ("network namespace" if namespace_prefix() else "", by_kernel)))
    return {
        "network": network or "Python audit hook only",
        "processes": " and ".join(filter(None, ("process namespace" if namespace_prefix() else "", by_kernel)))
        or "rlimit and Python audit hook only",
        "files": "Landlock" if layers.get("files") else "Python audit hook only",
    }


def run(source: str, stdin: str = "", limits: Limits | None = None) -> Run:
    """Runs `source` as a program in an empty folder, which is removed afterwards."""
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="led_sandbox_", ignore_cleanup_errors=True) as outer:
        # Input, output and report lie beside the program's folder, where it cannot write.
        folder = Path(outer, "work")
        folder.mkdir()
        Path(outer, "program.py").write_text(source, encoding="utf-8", errors="replace")
        Path(outer, "in").write_text(stdin, encoding="utf-8", errors="replace")
        started = time.monotonic()
        code, is_late = _start_and_wait(Path(outer), folder, limits)
        wall_s = time.monotonic() - started
        stdout, stderr = _read(Path(outer, "out"), limits.file_bytes), _read(Path(outer, "err"), limits.file_bytes)
        status = TIMEOUT if is_late else _status(code, stderr)
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return Run(status, stdout, stderr[-KEPT_CHARS:], wall_s, json.loads(Path(outer, "report").read_text()))
        return Run(status, stdout, stderr[-KEPT_CHARS:], wall_s)


def _start_and_wait(outer: Path, folder: Path, limits: Limits) -> tuple[int, bool]:
    paths = {"report": str(outer / "report"), "input": str(outer / "in")}
    settings = json.dumps({"limits": limits.as_rlimits(), "kernel": USE_KERNEL, **paths})
    command = [*namespace_prefix(), sys.executable, "-I", str(CONFINE), settings, str(outer / "program.py")]
    # Threads of numerical libraries would meet the limits before the program does; the run's secrets stay out.
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with (outer / "in").open("rb") as stdin, (outer / "out").open("wb") as out, (outer / "err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=out, stderr=err, cwd=folder, env=environment, start_new_session=True
        )
        try:
            return process.wait(limits.wall_s), False
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL, True
        finally:
            # The namespace's first process takes all others with it; without one, the session's processes are ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        return file.read(limit).decode(errors="replace")


def _status(code: int, stderr: str) -> str:
    if code == 0:
        return OK
    signum = -code if code < 0 else code - 128
    last = stderr.rstrip().rpartition("\n")[2]
    if "sandbox: blocked" in last or (last.startswith("PermissionError") and "Operation not permitted" in last):
        return BLOCKED
    if signum == signal.SIGXCPU or (signum == signal.SIGKILL and not stderr):
        return TIMEOUT
    if last.startswith("MemoryError") or "can't start new thread" in last:
        return MEMORY
    if signum == signal.SIGXFSZ or "[Errno 27]" in last:
        return TOO_MUCH_OUTPUT
    return CRASHED
