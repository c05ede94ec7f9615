"""What docs/compat.md says is refused at start is refused, by the name of its argument; real starts: test_refusals."""

from types import SimpleNamespace

import pytest

from led_sglang.integration.capture import CaptureError
from led_sglang.integration.support import _refuse_features


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
    ],
)
def test_what_cannot_work_is_refused(name: str, value: object) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(CaptureError, match=f"{flag}.*--led disabled"):
        _refuse_features(SimpleNamespace(**{name: value}))


def test_the_rest_starts() -> None:
    _refuse_features(SimpleNamespace(pp_size=1, tokenizer_worker_num=1, enable_dp_attention=False))
