"""What ends a run with a message instead of a traceback."""

from led_sglang.cli.endings import CommandError

__all__ = ["EvalError", "NotApplied", "ServerGone"]


class EvalError(CommandError):
    """Something the user has to put right; what was scored before stays on disk."""


class ServerGone(EvalError):
    """The server does not answer (any more)."""


class NotApplied(EvalError):
    """The server decoded with other parameters than the requested ones."""
