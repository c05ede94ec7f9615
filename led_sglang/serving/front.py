"""`led-sglang serve` and `make serve`: a server whose log goes to a file, and on the terminal what its user needs.

The server is `python -m led_sglang.launch` as a child, its arguments unchanged. The terminal has the stage of the
start, one block when requests are answered, and from the log the lines that are errors or LED's own warnings.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

import httpx

from led_sglang import __version__
from led_sglang.cli.check import QUESTION
from led_sglang.cli.endings import guarded
from led_sglang.serving.announcement import ENV_PIPE
from led_sglang.serving.log_lines import ErrorLines, stage_of

__all__ = ["block", "main", "make_parser", "serve"]

DEFAULT_LOG = Path("led-sglang.log")
LAUNCH = (sys.executable, "-m", "led_sglang.launch")
DIRECT = ("--check", "--help", "-h", "--help-sglang", "--version")  # end by themselves: no log, no child
POLL_S, TAIL_LINES = 0.25, 15
PR_SET_PDEATHSIG = 1


def block(what: dict[str, Any], log: Path, seconds: float) -> str:
    """What a user needs to know of a server that is ready.

    `what`: `url` (None on a node that answers no requests), `model`, `methods` and `defaults` (None: stock SGLang),
    `has_key`.
    """
    if what["url"] is None:
        ready = f"this node is ready after {seconds:.0f} s; the first node answers"
        return f"\nled_sglang {__version__}: {ready}\n  log        {log}"
    with_led, url, key = what["methods"] is not None, what["url"], what["has_key"]
    body = {"model": what["model"], "messages": [{"role": "user", "content": QUESTION}]}
    led = {"custom_params": {"led": True}} if with_led else {}
    words = json.dumps(body | led)
    header = " -H 'Authorization: Bearer KEY'" if key else ""
    rows = {
        "model": what["model"],
        "methods": f"{', '.join(what['methods'])}; {what['defaults']}" if with_led else "none: stock SGLang",
        "API": f"{url}/v1",
        "inspector": f"{url}/led/" if with_led else None,
        "try": f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{words}'",
        "log": str(log),
        "stop": "Ctrl-C",
    }
    lines = [f"  {name:<10} {value}" for name, value in rows.items() if value is not None]
    return "\n".join(["", f"led_sglang {__version__} is ready after {seconds:.0f} s", "", *lines, ""])


class Screen:
    """The terminal: a stage that is rewritten in place where it can be, one line each where it cannot."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._started = time.monotonic()
        self._stage = ""
        self._is_open = False  # the cursor stands behind a stage

    def stage(self, words: str) -> None:
        is_new, self._stage = words != self._stage, words
        text = f"led_sglang: {words} ({time.monotonic() - self._started:.0f} s)"
        if self._out.isatty():
            self._write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
            self._is_open = True
        elif is_new:
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        self._write(("\r\033[K" if self._is_open else "") + text + "\n")
        self._is_open = False

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Front:
    """One server from its start to its end."""

    def __init__(self, command: Sequence[str], log: IO[str], path: Path, out: IO[str]) -> None:
        self._path, self._screen = path, Screen(out)
        self._started = time.monotonic()
        self._errors, self._num_shown = ErrorLines(), 0
        self._reader = path.open(encoding="utf-8", errors="replace")
        self._rest, self._stage = "", "imports SGLang"
        self._what: dict[str, Any] | None = None
        self._is_ready = False
        self._stopped_by = 0
        pipe, theirs = os.pipe()
        self._pipe: int | None = pipe
        self.process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=(theirs,),
            env={**os.environ, ENV_PIPE: str(theirs)}, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        os.close(theirs)

    def run(self) -> int:
        """The status of the server's end; 128 + the signal's number if one ended it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        while self.process.poll() is None:
            self._watch()
            time.sleep(POLL_S)
        self._read_log()
        return self._ended(self.process.returncode)

    def _stop(self, number: int, frame: object) -> None:
        """The server has a session of its own, so that a terminal's Ctrl-C comes here alone."""
        self._stopped_by = number
        self.process.send_signal(signal.SIGTERM)

    def _watch(self) -> None:
        self._read_log()
        if self._is_ready or self._stopped_by:
            return
        if self._pipe is not None and select.select([self._pipe], [], [], 0)[0]:
            with open(self._pipe, encoding="utf-8") as pipe:
                text = pipe.read()
            self._what, self._pipe = json.loads(text) if text else None, None
        if self._what is not None and self._answers(self._what["url"]):
            self._is_ready = True
            self._screen.line(block(self._what, self._path, time.monotonic() - self._started))
        else:
            self._screen.stage(self._stage)

    def _answers(self, url: str | None) -> bool:
        """Whether the server serves; a node without an address is ready when it says that it was started."""
        if url is None:
            return True
        try:
            return httpx.get(f"{url}/health", timeout=5, verify=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _read_log(self) -> None:
        for line in self._new_lines():
            self._stage = stage_of(line) or self._stage
            if self._errors.includes(line):
                self._num_shown += 1
                self._screen.line(line)

    def _new_lines(self) -> Iterator[str]:
        *lines, self._rest = (self._rest + self._reader.read()).split("\n")
        yield from lines

    def _ended(self, status: int) -> int:
        seconds = f"{time.monotonic() - self._started:.0f} s"
        if self._stopped_by:
            self._screen.line(f"led_sglang: stopped after {seconds}; log: {self._path}")
            return 128 + self._stopped_by
        if status != 0 and not self._num_shown:
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]:
                self._screen.line(line)
        if status != 0 or not self._is_ready:
            self._screen.line(f"led_sglang: the server ended with status {status} after {seconds}; log: {self._path}")
        return 128 - status if status < 0 else status


def _die_with_parent() -> None:
    """Linux: SIGTERM for the server when the front is killed, so that no server stays without an owner."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def open_log(path: Path) -> tuple[Path, IO[str]]:
    """An empty log, and its path: `path`, or beside it with a number where another server writes there.

    Raises OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        each = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        log = each.open("a", encoding="utf-8")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            continue
        log.truncate(0)
        return each, log
    raise AssertionError


def serve(command: Sequence[str], log: Path = DEFAULT_LOG, out: IO[str] | None = None) -> int:
    """Run a server until it ends; its status. Raises OSError where the log cannot be written."""
    path, file = open_log(log)
    with file:
        return Front(command, file, path, out or sys.stdout).run()


def make_parser() -> argparse.ArgumentParser:
    """What the front takes for itself."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words = (
        f"the file that gets the log of `led-sglang serve`, with a number behind it if in use (default: {DEFAULT_LOG})"
    )
    parser.add_argument("--led-log", type=Path, default=DEFAULT_LOG, help=words)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`led-sglang serve [--led-log FILE] ...`: all but --led-log is an argument of `led_sglang.launch`."""
    options, rest = make_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    if any(word in DIRECT for word in rest):
        from led_sglang.launch import main as launch

        return launch(rest)
    return guarded("led-sglang serve", lambda: serve([*LAUNCH, *rest], options.led_log))
