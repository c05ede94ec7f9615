"""What docs/compat.md says is refused at start is refused, by the name of its argument; real starts: test_refusals."""

from types import SimpleNamespace

import pytest

from led_sglang.integration.capture import CaptureError
from led_sglang.integration.runtime import _refuse_another_model
from led_sglang.integration.support import _refuse_backend, refuse_features
from led_sglang.params import LedParamError, ServerConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speculative_algorithm", "EAGLE"),
        ("pp_size", 2),
        ("tokenizer_worker_num", 2),
        ("enable_dp_attention", True),
        ("enable_dp_lm_head", True),
        ("skip_tokenizer_init", True),
        ("smg_grpc_mode", True),
        ("grpc_mode", True),
        ("use_ray", True),
        ("encoder_only", True),
        ("attn_dp_size", 2),
        ("enable_watermark", True),
        ("watermark_config", "keys.json"),
        ("enable_return_aux_hidden_states", True),
    ],
)
def test_what_cannot_work_is_refused(name: str, value: object) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(CaptureError, match=f"{flag}.*--led disabled"):
        refuse_features(SimpleNamespace(**{name: value}))


def test_what_sglang_decided_counts_too() -> None:
    decided = [("a hook of SGLang's", {"attn_dp_size": 2})]
    with pytest.raises(CaptureError, match="--attn-dp-size 2"):
        refuse_features(SimpleNamespace(attn_dp_size=1, _resolved_overrides=decided))


def test_sglangs_rust_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    with pytest.raises(CaptureError, match=r"SGLANG_RUST_SERVER.*--led disabled"):
        refuse_features(SimpleNamespace())


def test_the_rest_starts() -> None:
    refuse_features(SimpleNamespace(pp_size=1, tokenizer_worker_num=1, enable_dp_attention=False))


def test_an_engine_of_another_model_than_was_told_is_refused() -> None:
    """`launch.enable` resolves layers and markers; the Engine is given its model a second time."""
    told = ServerConfig(num_layers=12, vocab_size=1000)
    _refuse_another_model(told, SimpleNamespace(num_hidden_layers=12, vocab_size=1000))
    for num_layers, vocab_size in ((36, 1000), (12, 9)):
        found = SimpleNamespace(num_hidden_layers=num_layers, vocab_size=vocab_size)
        with pytest.raises(CaptureError, match=r"launch\.enable"):
            _refuse_another_model(told, found)


@pytest.mark.parametrize(
    ("backend", "args", "named"),
    [
        ("triton", {"device": "cpu"}, "needs a GPU"),
        ("compiled", {"device": "cuda"}, "for the CPU"),
        ("reference", {"device": "cpu", "tp_size": 2}, "--tp-size 1"),
    ],
)
def test_a_backend_whose_every_step_would_fail_is_refused(backend: str, args: dict[str, object], named: str) -> None:
    """It would start, and answer with the engine's own tokens."""
    with pytest.raises(LedParamError, match=f"--led-backend {backend} .*{named}"):
        _refuse_backend(ServerConfig(backend=backend), SimpleNamespace(**{"tp_size": 1, **args}))
    for other in ("auto", "eager", "fused"):
        _refuse_backend(ServerConfig(backend=other), SimpleNamespace(**{"tp_size": 1, **args}))
