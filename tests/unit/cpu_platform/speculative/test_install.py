"""The platform's functions stand where SGLang's workers look, and only after a worker was asked for."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sglang.srt.platforms import _load_platform_class
from sglang.srt.server_args import ServerArgs

from led_sglang.cpu_platform import PLATFORM_CLASS, speculative
from led_sglang.cpu_platform.speculative.install import offer_ninja, replace

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

from types import SimpleNamespace
from sglang.srt import runtime_context
import sglang.srt.mem_cache.allocation  # modules that are imported before a worker is made
import sglang.srt.speculative.spec_utils

platform.init_backend()
runtime_context.get_spec = lambda: SimpleNamespace(speculative_adaptive=False)
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

from sglang.srt.speculative import draft_utils, spec_utils

assert not hasattr(spec_utils._select_top_k_tokens_later, "_torchdynamo_orig_callable")
draft_utils.attention_backends = lambda: ("torch_native", "torch_native")
pools = dict(req_to_token_pool=None, token_to_kv_pool=None)
runner = SimpleNamespace(draft_attention_backend=None, device="cpu", **pools,
                         model_config=SimpleNamespace(hf_config=None, hf_text_config=None))
factory = draft_utils.DraftBackendFactory(runner, 2, 4)
steps = factory.create_decode_backend()
assert (type(steps).__name__, len(steps.attn_backends), steps.topk) == ("DraftAttention", 3, 2)
assert {backend.decode_attention_backend_str for backend in steps.attn_backends} == {"torch_native"}
factory.draft_attn_backend = "flex_attention"
try:
    factory.create_decode_backend()
except ValueError as error:
    assert "flex_attention" in str(error)
else:
    raise AssertionError("another backend was taken for ours")
print("installed")
"""


def make_platform() -> Any:
    return _load_platform_class(PLATFORM_CLASS)()


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
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


def test_ninja_is_found_beside_the_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, python = tmp_path / "before", tmp_path / "venv" / "python"
    for folder in (before, python.parent):
        folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(before))
    ours, theirs = python.with_name("ninja"), before / "ninja"
    ours.touch(0o755)
    offer_ninja()
    assert shutil.which("ninja") == str(ours)
    theirs.touch(0o755)
    assert shutil.which("ninja") == str(theirs), "one that was on the PATH goes before"
    monkeypatch.setenv("PATH", str(before))
    offer_ninja()
    assert os.environ["PATH"] == str(before)


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


@pytest.mark.parametrize("field", speculative.UNSUPPORTED)
def test_an_option_that_is_not_served_ends_the_start(field: str) -> None:
    flag = f"--{field.replace('_', '-')}"
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    arguments = parser.parse_args(["--model-path", "m", "--device", "cpu", "--speculative-algorithm", "EAGLE", flag])
    with pytest.raises(ValueError, match=f"{flag} is not served by led_sglang's CPU platform"):
        make_platform().apply_server_args_defaults(arguments)
