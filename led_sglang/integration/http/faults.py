"""What a client is told of a request in which LED itself went wrong."""

from starlette.exceptions import HTTPException


class LedFault(ValueError, HTTPException):
    """HTTP 500: SGLang answers a ValueError with its `status_code`, or an HTTPException with that.

    But for /v1/responses, which says 400 of whatever goes wrong there, and streams, whose last event it is.
    """

    def __init__(self, error: BaseException) -> None:
        what = f"LED failed ({type(error).__name__}: {error}); the request was not served"
        HTTPException.__init__(self, 500, what)

    def __str__(self) -> str:
        return self.detail
