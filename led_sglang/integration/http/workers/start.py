"""What the first process does for the tokenizer workers that it will spawn: names their app, makes their counters."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from led_sglang.config.server import ENV_ANSWERS
from led_sglang.integration.topology_support import ENV_APP, WORKER_APP


@contextmanager
def for_workers() -> Iterator[None]:
    """Inside the block, processes that are spawned serve LED's app and count into one file."""
    with tempfile.TemporaryDirectory(prefix="led-sglang-workers-") as folder:
        file = Path(folder) / "answers"
        file.touch()
        os.environ.update({ENV_APP: WORKER_APP, ENV_ANSWERS: str(file)})
        yield
