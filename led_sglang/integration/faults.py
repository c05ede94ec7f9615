"""Errors of ours: what stops a start, what a guard lets pass, and which faults are logged.

Both processes use this module, so it imports neither side of them.
"""

import sys


class Deliberate(Exception):
    """Base of what is raised for the engine or the client to see; a guard (`hooks.guard`) lets it pass."""


class CaptureError(RuntimeError):
    """The model cannot be captured; the server must not start."""


class RankDivergence(Deliberate, RuntimeError):
    """The ranks are at different tokens, or soon would be: every answer of the server would be wrong, so it stops."""


_seen: set[tuple[str, str, int]] = set()


def is_new(where: str) -> bool:
    """In an `except` block: the first fault that was caught in `where` and raised at its line, and so worth a log.

    A fault may come back with every token; two faults that are caught in one function are two.
    """
    trace = sys.exc_info()[2]
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    fault = where, trace.tb_frame.f_code.co_filename, trace.tb_lineno
    if fault in _seen:
        return False
    _seen.add(fault)
    return True
