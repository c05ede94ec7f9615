"""A process that has imported SGLang, and forks itself for each job: an import takes longer than a tiny model's start.

Reads jobs from its standard input and writes an answer to each: JSON, a line each. Started by `Farm`.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S = 300


class Farm:
    """The process, as the tests see it."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.models.farm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.close()

    def judge(self, name: str, folder: Path, *arguments: str, ranks: int = 1, breakage: str | None = None) -> Any:
        """The answer of rank 0, see `judge.judged`. Raises RuntimeError with the traceback of a process that failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"name": name, "folder": str(folder), "arguments": arguments, "ranks": ranks, "breakage": breakage}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "traceback" in answer:
            raise RuntimeError(answer["traceback"])
        return answer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints goes to the log
    from tests.models import engine, judge

    assert judge
    engine.prepare_process()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


def run(job: dict[str, Any]) -> Any:
    """Every rank in a fork; the answer of the first one, or the first traceback."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(job["ranks"])]
        forks = [fork(job, rank, port, file) for rank, file in enumerate(files)]
        for pid in forks:
            os.waitpid(pid, 0)
        found = [json.loads(file.read_text()) if file.exists() else {"traceback": "the process died"} for file in files]
    return next((answer for answer in found if "traceback" in answer), found[0])


def fork(job: dict[str, Any], rank: int, port: int, file: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        import faulthandler

        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        from tests.models.judge import judged

        # A rank has one thread: two that wait for each other on a busy machine cost a hundred times a tiny product.
        cpus = sorted(os.sched_getaffinity(0))
        os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cpus[number % len(cpus)]) for number in range(job["ranks"])
        )
        arguments: Sequence[str] = job["arguments"]
        if job["ranks"] > 1:
            arguments = [*arguments, "--tp-size", str(job["ranks"])]
        answer = judged(job["name"], Path(job["folder"]), port, list(arguments), rank, job["breakage"])
    except BaseException:
        answer = {"traceback": traceback.format_exc()}
    file.write_text(json.dumps(answer))
    os._exit(0)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
