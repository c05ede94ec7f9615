"""What a client receives where LED failed on its request."""

import sys

from starlette.exceptions import HTTPException

from led_sglang.integration.faults import Deliberate
from led_sglang.integration.hooks.guard import Call


class LedFault(Deliberate, ValueError, HTTPException):
    """HTTP 500: SGLang answers a ValueError with its `status_code`, or an HTTPException with that.

    But for /v1/responses, which says 400 of whatever goes wrong there, and streams, whose last event it is.
    """

    def __init__(self, error: BaseException) -> None:
        what = f"LED failed ({type(error).__name__}: {error}); the request was not served"
        HTTPException.__init__(self, 500, what)

    def __str__(self) -> str:
        return self.detail


def refuse(call: Call) -> None:
    """Recovery of a hook of one request: LED would not do what the request asks for, so it is an error 500."""
    error = sys.exc_info()[1]
    assert error is not None
    raise LedFault(error) from error
