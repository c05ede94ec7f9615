"""Imports without the collector: it is off for their time and for no longer, in the processes SGLang spawns too."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from led_sglang.serving.imports import collector_paused

# As multiprocessing does in a spawned process, where the server was started with `python -m led_sglang.launch`.
SPAWNED = """
import gc, runpy, sys
seen = []
gc.callbacks.append(lambda phase, info: seen.append("sglang.srt.managers.detokenizer_manager" in sys.modules))
runpy.run_module("led_sglang.launch", run_name="__mp_main__", alter_sys=True)
assert "sglang.srt.managers.detokenizer_manager" in sys.modules
assert gc.isenabled()
assert gc.get_freeze_count() > 500_000, gc.get_freeze_count()
print(len(seen))
"""


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_off_inside_and_on_again() -> None:
    with collector_paused():
        assert not gc.isenabled()
        made: list[object] = [[]]
    assert gc.isenabled()
    assert not any(known is made for known in gc.get_objects()), "would be walked again"


def test_on_again_after_an_error() -> None:
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()


def test_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_spawned_process() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run((sys.executable, "-c", SPAWNED), cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    num_collections = int(done.stdout.split()[-1])
    assert num_collections < 200, f"{num_collections} collections: SGLang was imported under the collector"
