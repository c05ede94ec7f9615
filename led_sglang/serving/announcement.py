"""How a server tells the front that started it, if one did, what it will serve: one JSON object through a pipe."""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["ENV_PIPE", "announce"]

ENV_PIPE = "LED_SGLANG_FRONT_PIPE"  # internal: the pipe's file descriptor; processes of the server do not inherit it


def announce(**what: Any) -> None:
    """`what`: the keys that `front.block` reads. Without a front nothing happens."""
    number = os.environ.pop(ENV_PIPE, None)
    if number is not None:
        with open(int(number), "w", encoding="utf-8") as pipe:
            json.dump(what, pipe)
