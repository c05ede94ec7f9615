"""Where the tests find `Server`."""

from led_sglang.child_server import START_LIMIT_S, Server, free_port

__all__ = ["START_LIMIT_S", "Server", "free_port"]
