"""The platform's functions stand where SGLang's workers look, and only after a worker was asked for."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from sglang.srt.platforms import _load_platform_class

from led_sglang.cpu_platform import PLATFORM_CLASS, speculative
from led_sglang.cpu_platform.speculative.install import replace

WITHOUT = """
import sys
from led_sglang.cpu_platform import PLATFORM_CLASS
from sglang.srt.platforms import _load_platform_class

platform = _load_platform_class(PLATFORM_CLASS)()
platform.init_backend()
assert platform.get_kv_pool_cls(kind="mha") is None
print([name for name in sys.modules if name.startswith("led_sglang.cpu_platform.speculative")])
"""

WITH = """
import importlib
import sys
from led_sglang.cpu_platform import PLATFORM_CLASS
from sglang.srt.platforms import _load_platform_class

platform = _load_platform_class(PLATFORM_CLASS)()

import sglang.srt.mem_cache.allocation  # modules that are imported before a worker is made
import sglang.srt.speculative.spec_utils

platform.init_backend()
assert platform.get_speculative_worker_cls(algorithm="NGRAM") is None
from led_sglang.cpu_platform.speculative.install import REPLACEMENTS
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.speculative import eagle_worker_common, ngram_worker, standalone_worker_v2

importers = 0
for target, function in REPLACEMENTS.items():
    module, _, name = target.rpartition(".")
    assert getattr(importlib.import_module(module), name) is function, target
    for other in [m for n, m in sys.modules.items() if n.startswith("sglang.") and name in vars(m)]:
        assert vars(other)[name] is function, (other, name)
        importers += 1
assert importers > len(REPLACEMENTS), importers
assert ATTENTION_BACKENDS["torch_native"].__name__ == "SpeculativeAttention"
assert platform.get_kv_pool_cls(kind="mha").__name__ == "MovableKVPool"
assert platform.get_kv_pool_cls(kind="mla") is None
print("installed")
"""


def make_platform() -> Any:
    return _load_platform_class(PLATFORM_CLASS)()


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_nothing_of_it_is_there_without_a_worker() -> None:
    assert run(WITHOUT) == "[]"


def test_every_importer_has_the_replacement() -> None:
    assert run(WITH) == "installed"


def test_a_function_that_sglang_no_longer_has_ends_the_start() -> None:
    with pytest.raises(AttributeError, match="no_such_function"):
        replace("sglang.srt.utils.no_such_function", print)
    with pytest.raises(ImportError):
        replace("sglang.srt.no_such_module.function", print)


def test_other_names_and_other_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules of a function that is None: what is called otherwise, or has another value, is not it."""
    one, two, foreign = (ModuleType(name) for name in ("sglang.one", "sglang.two", "elsewhere"))
    one.kernel = two.kernel = foreign.kernel = None  # type: ignore[attr-defined]
    two.other, one.same = None, print  # type: ignore[attr-defined]
    for module in (one, two, foreign):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    replace("sglang.one.kernel", len)
    assert (one.kernel, two.kernel, foreign.kernel) == (len, len, None)  # type: ignore[attr-defined]
    assert (two.other, one.same) == (None, print)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["DFLASH", "UNO", "DSPARK", "FROZEN_KV_MTP", "ngram"])
def test_what_is_not_served_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"--speculative-algorithm {name} is not served .* which serves NGRAM"):
        make_platform().get_speculative_worker_cls(algorithm=name)
    assert not make_platform().supports_speculative_algorithm(name)


def test_what_is_served_is_supported() -> None:
    assert all(make_platform().supports_speculative_algorithm(name) for name in speculative.ALGORITHMS)
