"""Real servers as child processes, for tests and benchmarks: always stopped, logs kept."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from led_sglang.cli.endings import CommandError
from led_sglang.serving.ports import HeldPort

__all__ = ["START_LIMIT_S", "Server", "StartError"]

START_LIMIT_S = 420.0  # a cold, busy 2-core machine has needed two minutes


class StartError(CommandError, RuntimeError):
    """A server that exited or was not ready in time; the message holds the end of its log."""


class Server:
    """`python -m led_sglang.launch ...` (or another module), in its own process group, logging to a file.

    It listens on a port of its own of 127.0.0.1, regardless of the arguments; OMP_NUM_THREADS is 1 unless set.
    python: the interpreter, of another environment for what is installed there.
    """

    def __init__(
        self,
        *arguments: str,
        log: Path,
        module: str = "led_sglang.launch",
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._held_port = HeldPort()
        self.port = self._held_port.number
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [python, "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(self.port)]
        env = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}  # 1: beside clients that need cores too
        env.pop("LED_SGLANG_CONFIG", None)
        # A group of its own for `stop`, in the caller's session: `nice` weighs processes within a session only.
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, process_group=0
            )

    def wait_ready(self) -> "Server":
        """Raises StartError with the end of the log if the server exits or is not healthy in time.

        The server is stopped if the wait ends in any other way, an interrupt included.
        """
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StartError(f"server exited with {self.process.returncode}:\n{self.end_of_log()}")
            with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess):
                if self._is_listening() and httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        raise StartError(f"server not ready after {START_LIMIT_S} s:\n{self.end_of_log()}")

    def _is_listening(self) -> bool:
        """Whether this server itself listens: another one on the port would be healthy too."""
        parent = psutil.Process(self.process.pid)
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port
            for process in (parent, *parent.children(recursive=True))
            for connection in process.net_connections("inet")
        )

    def wait_exit(self, limit_s: float = START_LIMIT_S) -> int:
        """Exit status of a server that must refuse to start. Raises subprocess.TimeoutExpired."""
        try:
            return self.process.wait(limit_s)
        finally:
            self.stop()

    def end_of_log(self, num_chars: int = 4000) -> str:
        """The end of the log; a log on a device (/dev/full) has none."""
        return self.log.read_text(errors="replace")[-num_chars:] if self.log.is_file() else ""

    def stop(self) -> None:
        for sig, limit_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 30.0)):
            try:
                os.killpg(self.process.pid, sig)
            except ProcessLookupError:
                break
            try:
                self.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # children that outlived their parent
        self._held_port.release()

    def __enter__(self) -> "Server":
        return self.wait_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
