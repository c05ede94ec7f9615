"""What docs/compat.md says is refused at start is refused, by the name of its argument; real starts: test_refusals."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.models
from sglang.srt.server_args import ServerArgs

from led_sglang.config.checks import LedParamError
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.model_support import NO_LAYER_OUTPUT, STREAMS_BY_CONFIG, refuse_model
from led_sglang.integration.scheduler.startup import _refuse_another_model
from led_sglang.integration.support import (
    UNSUPPORTED,
    EngineRefusal,
    _engine_refusals,
    _refuse_backend,
    refuse_features,
)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_work_is_refused(name: str) -> None:
    """Every field of the table, as SGLang's parser would set it."""
    kinds: dict[str, object] = {
        **dict.fromkeys(("pp_size", "attn_cp_size"), 2),
        **dict.fromkeys(("watermark_config", "dllm_algorithm"), "NGRAM"),
        "decoupled_spec_role": "verifier",
        "grpc_port": 30001,
        "moe_a2a_backend": "deepep",
        "elastic_ep_backend": "nixl",
        "ep_join_mode": "scale",
    }
    value = kinds.get(name, True)
    flag = "--elastic-ep-join-mode" if name == "ep_join_mode" else "--" + name.replace("_", "-")
    reported = flag if value is True else f"{flag} {value}"
    with pytest.raises(CaptureError, match=f"{reported}: .*--led disabled"):
        refuse_features(SimpleNamespace(**{name: value}))
    page = Path("docs/compat.md").read_text(encoding="utf-8")
    assert f"`{flag}`" in page or name in ("smg_grpc_mode", "grpc_mode", "use_ray"), "told in the documentation"


@pytest.mark.parametrize(
    "error", [ValueError("no"), AssertionError("no"), NotImplementedError("no"), OSError("no"), RuntimeError("no")]
)
def test_what_sglang_raises_is_one_sentence(error: Exception) -> None:
    """A RuntimeError is torch's, where SGLang asks for a GPU that is not there."""
    with pytest.raises(EngineRefusal, match=r"^SGLang refuses the arguments: no$"), _engine_refusals():
        raise error


def test_the_table_names_arguments_of_the_installed_release() -> None:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert {flag for flag, _ in UNSUPPORTED.values()} <= flags | {"--grpc-mode"}, "0.5.17 alone has --grpc-mode"


CAPTURING = ServerConfig(depth=2, max_depth=2, num_layers=12)


def model_config(name: str, **text: object) -> Any:
    return SimpleNamespace(hf_config=SimpleNamespace(architectures=[name]), hf_text_config=SimpleNamespace(**text))


@pytest.mark.parametrize("name", NO_LAYER_OUTPUT)
def test_a_model_without_one_output_of_a_layer_is_refused(name: str) -> None:
    with pytest.raises(CaptureError, match=f"layers of {name}: .*--led-max-depth 1 --led-depth 1"):
        refuse_model(CAPTURING, model_config(name), SimpleNamespace())
    refuse_model(ServerConfig(depth=1, max_depth=1, num_layers=12), model_config(name), SimpleNamespace())


@pytest.mark.parametrize(("name", "setting"), STREAMS_BY_CONFIG.items())
def test_streams_that_a_configuration_switches_on_are_refused(name: str, setting: str) -> None:
    with pytest.raises(CaptureError, match=f"layers of {name}: .*several branches"):
        refuse_model(CAPTURING, model_config(name, **{setting: {"hc_mult": 4}}), SimpleNamespace())
    refuse_model(CAPTURING, model_config(name, **{setting: None}), SimpleNamespace())


def test_what_is_refused_are_classes_of_the_installed_release() -> None:
    folder = Path(sglang.srt.models.__path__[0])
    text = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    assert [name for name in (*NO_LAYER_OUTPUT, *STREAMS_BY_CONFIG) if f"class {name}(" not in text] == []


def test_compiled_prefills_are_refused() -> None:
    args = SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(backend="tc_piecewise")))
    with pytest.raises(CaptureError, match=r"--cuda-graph-backend-prefill tc_piecewise: .*breakable"):
        refuse_model(CAPTURING, model_config("Qwen3ForCausalLM"), args)
    args.cuda_graph_config.prefill.backend = "breakable"
    refuse_model(CAPTURING, model_config("Qwen3ForCausalLM"), args)


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_the_rust_front_end_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", value)
    with pytest.raises(CaptureError, match=r"SGLANG_RUST_SERVER: .*--led disabled"):
        refuse_features(SimpleNamespace())
    monkeypatch.setenv("SGLANG_RUST_SERVER", "0")
    refuse_features(SimpleNamespace())


def test_what_sglang_decided_counts_too() -> None:
    decided = [("a hook of SGLang's", {"attn_cp_size": 2})]
    with pytest.raises(CaptureError, match="--attn-cp-size 2"):
        refuse_features(SimpleNamespace(attn_cp_size=1, _resolved_overrides=decided))


def test_the_rest_starts() -> None:
    refuse_features(SimpleNamespace(pp_size=1, tokenizer_worker_num=2, attn_dp_size=2))
    refuse_features(SimpleNamespace(moe_a2a_backend="none", decoupled_spec_role="null", elastic_ep_backend="none"))
    refuse_features(SimpleNamespace(decoupled_spec_role="null", attn_dp_size=1, speculative_algorithm=None))


def test_an_engine_of_another_model_than_was_configured_is_refused() -> None:
    """`launch.enable` resolves layers and markers; the Engine is given its model a second time."""
    reported = ServerConfig(num_layers=12, vocab_size=1000)
    _refuse_another_model(reported, SimpleNamespace(num_hidden_layers=12, vocab_size=1000))
    for num_layers, vocab_size in ((36, 1000), (12, 9)):
        found = SimpleNamespace(num_hidden_layers=num_layers, vocab_size=vocab_size)
        with pytest.raises(CaptureError, match=r"launch\.enable"):
            _refuse_another_model(reported, found)


@pytest.mark.parametrize(
    ("backend", "args", "named"),
    [
        ("triton", {"device": "cpu"}, "needs a GPU"),
        ("compiled", {"device": "cuda"}, "for the CPU"),
        ("numba", {"device": "cuda"}, "for the CPU"),
        ("reference", {"device": "cpu", "tp_size": 2}, "--tp-size 1"),
    ],
)
def test_a_backend_whose_every_step_would_fail_is_refused(backend: str, args: dict[str, object], named: str) -> None:
    """It would start, and answer with the engine's own tokens."""
    with pytest.raises(LedParamError, match=f"--led-backend {backend} .*{named}"):
        _refuse_backend(ServerConfig(backend=backend), SimpleNamespace(**{"tp_size": 1, **args}))
    for other in ("auto", "eager", "fused"):
        _refuse_backend(ServerConfig(backend=other), SimpleNamespace(**{"tp_size": 1, **args}))
