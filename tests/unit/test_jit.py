"""Machine code that two processes keep at the same moment stays with the signature it was compiled for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from led_sglang import jit

MODULE = """
from led_sglang.jit import jit


@jit
def total(values):
    result = 0.0
    for i in range(len(values)):
        result += values[i]
    return result
"""

# Compiles one signature, and pauses before numba writes the index that it has read, and before it writes the code.
KEEP = """
import sys, time
import numpy as np
from numba.core.caching import IndexDataCacheFile
from summing import total


def later(name, pause_s):
    method = getattr(IndexDataCacheFile, name)

    def paused(*arguments):
        time.sleep(pause_s)
        return method(*arguments)

    setattr(IndexDataCacheFile, name, paused)


later("_save_index", float(sys.argv[2]))
later("_save_data", float(sys.argv[3]))
print(total(np.arange(5, dtype=sys.argv[1])))
"""

USE = """
import sys
import numpy as np
from summing import total

print(total(np.arange(5, dtype=sys.argv[1])), sum(total._cache_hits.values()))
"""

PAUSES_S = {"float64": ("3", "0"), "int32": ("1", "4")}  # the index is float64's then, the code int32's


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "summing.py").write_text(MODULE)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}


def test_two_processes_keep_two_signatures_at_once(environment: dict[str, str]) -> None:
    def outputs(code: str) -> list[str]:
        commands = [[sys.executable, "-c", code, kind, *pauses] for kind, pauses in PAUSES_S.items()]
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands
        ]
        return [process.communicate(timeout=120)[0].strip() for process in processes]

    assert outputs(KEEP) == ["10.0", "10.0"]
    assert outputs(USE) == ["10.0 1", "10.0 1"], "a signature got other code, or was compiled again"


OTHER = """
from led_sglang import jit

jit.package_stamp = lambda: "of other sources"
"""


def test_code_of_other_sources_is_compiled_again(environment: dict[str, str]) -> None:
    def hits(before: str) -> str:
        command = [sys.executable, "-c", before + USE, "float64"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert [hits(""), hits(""), hits(OTHER), hits(OTHER)] == ["10.0 0", "10.0 1", "10.0 0", "10.0 1"]


def test_the_stamp_is_of_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit, "PACKAGE", tmp_path)
    stamps = []
    (tmp_path / "ops").mkdir()
    for text in ("", "A = 1\n", "A = 12\n"):
        (tmp_path / "ops" / "a.py").write_text(text)
        stamps.append(jit.package_stamp.__wrapped__())
    (tmp_path / "wire.py").touch()
    stamps.append(jit.package_stamp.__wrapped__())
    assert len(set(stamps)) == 4
