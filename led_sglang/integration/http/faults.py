"""Faults of LED itself: which of them are logged, and what a client is told of a request in which there was one."""

import sys

from starlette.exceptions import HTTPException

_seen: set[tuple[str, str, int]] = set()


def is_new(where: str) -> bool:
    """In an `except` block: the first fault that was caught in `where` and raised at its line, and so worth a log.

    A fault may come back with every token; two faults that are caught in one place are two.
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


class LedFault(ValueError, HTTPException):
    """HTTP 500: SGLang answers a ValueError with its `status_code`, or an HTTPException with that.

    But for /v1/responses, which says 400 of whatever goes wrong there, and streams, whose last event it is.
    """

    def __init__(self, error: BaseException) -> None:
        what = f"LED failed ({type(error).__name__}: {error}); the request was not served"
        HTTPException.__init__(self, 500, what)

    def __str__(self) -> str:
        return self.detail
