"""Which lines of a server's log a person at the terminal wants to see, and which stage of the start a line begins.

SGLang's lines have no level. So a line is an error by its words, a traceback whole, and a warning of LED's by its
beginning. A stage is only shown: a release that says it otherwise changes the display, nothing else.
"""

from __future__ import annotations

import re

__all__ = ["ErrorLines", "stage_of"]

ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|\b\w*(Error|Exception)\b|: error: |500 Internal")
PREFIX = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\] ")
OURS = re.compile(r"^(LED\b|led_sglang: |/metrics is without LED)|led_sglang's ")
# Of a healthy start.
QUIET = re.compile(r"^(LED: (methods |the start check of |[\d.,]+ [kMG]?B )|LED matches |led_sglang: ok)")
TRACEBACK = "Traceback (most recent call last):"
BETWEEN = ("During handling of", "The above exception")
STAGES = {
    "server_args=": "checks the hooks and the model",
    "Init parallel begin": "starts the engine",
    "Load weight begin": "loads the weights",
    "Memory pool end": "compiles LED's step, a minute at the first start",
    "LED: methods ": "runs LED's start check",
    "Application startup complete": "answers its first request",
}


class ErrorLines:
    """Reads a log line by line; remembers whether it is inside a traceback."""

    def __init__(self) -> None:
        self._is_inside = False

    def includes(self, line: str) -> bool:
        """Whether the line belongs on the terminal."""
        text = PREFIX.sub("", line)
        if TRACEBACK in line:
            self._is_inside = True
        elif self._is_inside:
            # Indented frames, then the exception on a line that is not; another traceback may follow it.
            self._is_inside = not text or text[0].isspace() or text.startswith(BETWEEN)
        elif text.startswith(BETWEEN):
            self._is_inside = True
        else:
            is_ours = OURS.search(text) is not None and QUIET.match(text) is None
            return is_ours or ERROR.search(text) is not None
        return True


def stage_of(line: str) -> str | None:
    """The stage of the start that this line of the log begins."""
    text = PREFIX.sub("", line)
    return next((stage for beginning, stage in STAGES.items() if text.startswith(beginning)), None)
