"""One server with many of the engine's features switched on, and LED over them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.server.clients import Oracle
from tests.server.features import adapters
from tests.server.servers import Server, install_plugin

API_KEY = "a secret of the tests"
LIMIT_S = 120.0

# SGLang pins memory for LoRA and masks thinking tokens with its GPU kernel, whatever the device: on a CPU both stop the
# server, LED or not. Here pinning is left out, and the mask is applied by the CPU path that SGLang has for grammars.
ON_A_CPU = """
import functools, torch
from sglang.srt.constrained import xgrammar_backend as grammar
if torch.cuda.is_available() or hasattr(torch.tensor, "__wrapped__"): return
def without_pinning(make):
    return functools.wraps(make)(lambda *args, pin_memory=False, **kwargs: make(*args, **kwargs))
for name in ("tensor", "zeros"): setattr(torch, name, without_pinning(getattr(torch, name)))
torch.Tensor.pin_memory = lambda self, *args: self
apply = lambda logits, vocab_mask: grammar.XGrammarGrammar.apply_vocab_mask(None, logits, vocab_mask)
grammar.XGrammarGrammarBackend.apply_vocab_mask = staticmethod(apply)
"""


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.build(tmp_path_factory.mktemp("adapter"), adapters.LAYERS)


@pytest.fixture(scope="session")
def adapted(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The embedded model with the adapter added to its weights."""
    return Oracle(adapters.merge(adapter, tmp_path_factory.mktemp("adapted")))


@pytest.fixture(scope="package")
def features_server(logs: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    plugin = install_plugin(tmp_path_factory.mktemp("cpu_plugin"), ON_A_CPU.strip())
    arguments = (
        *("--api-key", API_KEY),
        *("--reasoning-parser", "qwen3", "--enable-strict-thinking"),
        *("--tool-call-parser", "qwen25"),
        # Without this JSON may begin with newlines for ever, and from a small model it does.
        "--constrained-json-disable-any-whitespace",
        *("--enable-return-hidden-states", "--enable-streaming-session"),
        *("--enable-lora", "--lora-paths", f"tiny={adapter}", "--lora-backend", "torch_native"),
    )
    environment = {**plugin, "SGLANG_MAX_THINK_TOKENS": "100000"}  # a budget, so that it is looked at
    with Server(*arguments, log=logs / "features.log", environment=environment) as server:
        yield server


@pytest.fixture(scope="package")
def http(features_server: Server) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=features_server.url, headers=headers, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture(scope="package")
def openai(features_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{features_server.url}/v1", api_key=API_KEY, timeout=LIMIT_S, max_retries=0) as client:
        yield client
