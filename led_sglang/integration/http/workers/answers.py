"""What an HTTP process alone counts, since start; the other counters of /led/info and /metrics are the scheduler's.

Several tokenizer workers are several processes, and any of them may be asked: each counts in its own row of a file that
all of them map, and tells the sum of all rows. A worker that takes the place of a dead one has a new row.
"""

import fcntl
import os
from typing import Any

import numpy as np

from led_sglang.config.methods import METHODS
from led_sglang.config.server import ENV_ANSWERS

NUM_COLUMNS = 1 + len(METHODS)  # failures to report, then answered requests by decoding method; int64


class Answers:
    """The counters of this process, and of the other workers once they are shared."""

    def __init__(self) -> None:
        self._row: Any = np.zeros(NUM_COLUMNS, np.int64)
        self._file: str | None = None

    def share(self) -> None:
        """Count into a new row of the workers' file from here on. Raises OSError."""
        path = os.environ[ENV_ANSWERS]
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another worker may be taking a row
            offset = file.seek(0, os.SEEK_END)
            file.write(self._row.tobytes())
            file.flush()
            fcntl.flock(file, fcntl.LOCK_UN)  # said, for the map keeps the file open
            self._row = np.memmap(file, np.int64, "r+", offset, (NUM_COLUMNS,))
        self._file = path

    def add_report_failure(self) -> None:
        self._row[0] += 1

    def add_request(self, method: str) -> None:
        """method: of METHODS."""
        self._row[1 + METHODS.index(method)] += 1

    def to_dict(self) -> dict[str, Any]:
        """Of all workers: methods that no request had are left out."""
        rows = self._row if self._file is None else np.fromfile(self._file, np.int64)
        failures, *requests = rows.reshape(-1, NUM_COLUMNS).sum(0).tolist()
        answered = {method: number for method, number in zip(METHODS, requests, strict=True) if number}
        return {"report_failures": failures, "requests": answered}
