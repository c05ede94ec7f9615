"""Mathematics is judged in processes of their own: a judge that hangs or eats memory is ended and counted.

    python -m led_sglang.evals.grade.judge

reads one JSON object a line (`grader`, `text`, `gold`) and writes one verdict a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from dataclasses import asdict
from importlib import import_module
from types import TracebackType

from led_sglang.evals.grade.graders import GRADERS, JUDGE_ERROR, JUDGE_TIMEOUT, Verdict

__all__ = ["Judges"]

JUDGE_MEMORY_BYTES = 4 << 30
LINE_LIMIT_BYTES = 1 << 24
START_LIMIT_S = 60.0  # sympy alone takes seconds to import on a busy machine


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (JUDGE_MEMORY_BYTES, JUDGE_MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not end up among the verdicts
    with contextlib.suppress(ImportError):
        import_module("math_verify")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        requested = json.loads(line)
        try:
            verdict = GRADERS[requested["grader"]](requested["text"], requested["gold"])
        except Exception as error:  # whatever a parser of model output raises is an outcome
            verdict = Verdict(JUDGE_ERROR, detail=f"{type(error).__name__}: {error}"[:300])
        print(json.dumps(asdict(verdict)), file=out, flush=True)


class _Process:
    """One judge; started when first needed, again after it was ended."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "led_sglang.evals.grade.judge",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_LIMIT_BYTES,
            start_new_session=True,  # Ctrl-C ends the run, which then ends its judges
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_LIMIT_S):
            await self.process.stdout.readline()
        return self.process

    async def ask(self, line: str, limit_s: float) -> Verdict:
        try:
            process = self.process or await self.start()
            assert process.stdin is not None and process.stdout is not None
            async with asyncio.timeout(limit_s):
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
                reply = await process.stdout.readline()
            if reply:
                return Verdict(**json.loads(reply))
            verdict = Verdict(JUDGE_ERROR, detail="the judge process died")
        except TimeoutError:
            verdict = Verdict(JUDGE_TIMEOUT, detail=f"no verdict in {limit_s:g} s")
        except OSError as error:
            verdict = Verdict(JUDGE_ERROR, detail=f"the judge process died: {error}")
        except asyncio.CancelledError:
            await self.end()
            raise
        await self.end()
        return verdict

    async def end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Judges:
    """`count` judge processes behind one queue."""

    def __init__(self, count: int = 2, limit_s: float = 20.0) -> None:
        self._limit_s = limit_s
        self._all = [_Process() for _ in range(count)]
        self._free: asyncio.Queue[_Process] = asyncio.Queue()

    async def grade(self, grader: str, text: str, gold: str) -> Verdict:
        process = await self._free.get()
        try:
            return await process.ask(json.dumps({"grader": grader, "text": text, "gold": gold}), self._limit_s)
        finally:
            self._free.put_nowait(process)

    async def __aenter__(self) -> Judges:
        for process in self._all:
            self._free.put_nowait(process)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._all:
            await process.end()


if __name__ == "__main__":
    _serve()
