"""The end of a command: its result and status 0, or one message with the reason and another status.

0: done; 1: not done, the reason is on stderr; 2: bad arguments; 130: interrupted; 141: the output pipe was closed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable

__all__ = ["CommandError", "guarded", "words", "write_stderr"]

FAILED, INTERRUPTED, UNREAD = 1, 130, 141


class CommandError(Exception):
    """Ends a command with a message instead of a traceback: what could not be done, why, and what is legal."""


def guarded(
    name: str,
    work: Callable[[], int | None],
    kept: Callable[[str], str] = lambda message: "",
    install: str = "pip install 'led_sglang[evals]'",
) -> int:
    """The exit status of the command `name`; `work` reads its arguments and does it.

    CommandError, OSError and a missing package become one message; `kept(message)` adds what unfinished work leaves
    behind. SystemExit (argparse's) passes through, and so does any other exception: a fault of this package.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows \xe9 for a letter that it lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return work() or 0
        finally:
            _flush()
    except BrokenPipeError:
        _drop_output()
        return UNREAD
    except (CommandError, OSError) as error:
        write_stderr(f"{name}: {words(error)}", kept(words(error)))
    except ModuleNotFoundError as error:
        write_stderr(f"{name}: {error}: {install}")
    except KeyboardInterrupt:
        write_stderr(f"{name}: stopped", kept("stopped"))
        return INTERRUPTED
    _drop_output()
    return FAILED


def words(error: BaseException) -> str:
    """The message of an error; a system error's without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def write_stderr(*lines: str) -> None:
    """Write to stderr; a closed stderr is ignored."""
    with contextlib.suppress(OSError):
        print("\n".join(filter(None, lines)), file=sys.stderr, flush=True)


def _flush() -> None:
    """Here and not when the interpreter ends, where a full disk or a closed pipe is a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"standard output: {words(error)}") from error


def _drop_output() -> None:
    """What could not be written is not tried again when the interpreter ends."""
    output = sys.__stdout__
    if output is None or output is not sys.stdout:
        return
    try:
        output.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)
