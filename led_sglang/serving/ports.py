"""TCP ports of servers that start slowly: reserved until they listen; a taken one is refused at once."""

import errno
import os
import socket
from types import TracebackType
from typing import Any

__all__ = ["CannotListen", "HeldPort", "refuse_taken"]

AddressInfo = tuple[Any, Any, int, str, Any]  # of socket.getaddrinfo


class CannotListen(RuntimeError):
    """The address is taken, or this machine cannot listen on it."""


class HeldPort:
    """A free port of 127.0.0.1 for a server that starts later: bound, not listened on, until it is released.

    A free port that is only looked up may go to another server before this one listens; clients of both then reach the
    faster one. While this object holds the port, the kernel does not assign it to sockets that take any port; a
    server that names the number can listen on it (Linux, SO_REUSEADDR). Until then connections are refused.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        self._socket.close()

    def __enter__(self) -> "HeldPort":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def refuse_taken(host: str, port: int) -> None:
    """Raises CannotListen where a server could not listen.

    SGLang finds out after the weights are loaded, and then its processes wait for each other and do not exit.
    """
    where = f"cannot listen on --host {host} --port {port}"
    if not 1 <= port <= 65535:
        raise CannotListen(f"{where}: the port must be from 1 to 65535")
    try:
        address_infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{where}: {error}") from error
    errors = [found for address_info in address_infos if (found := _listening_error(address_info)) is not None]
    # A name may have addresses of a family that this machine lacks; one address that it has is enough.
    fatal = [found for found in errors if found.errno != errno.EADDRNOTAVAIL or len(errors) == len(address_infos)]
    if fatal:
        raise CannotListen(f"{where}: {os.strerror(fatal[0].errno or 0)}; name another with --port or --host")


def _listening_error(address_info: AddressInfo) -> OSError | None:
    family, kind, protocol, _, address = address_info
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None
