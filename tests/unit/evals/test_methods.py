"""Methods as written, as sent, as echoed."""

import pytest

from led_sglang.evals.errors import EvalError
from led_sglang.evals.methods import parse_methods


def test_a_list_of_methods() -> None:
    methods = parse_methods("cot, led,led:depth=4,top_k=3,led:latent_norm=true,dola:layers=high,led,min_p=0.05")
    assert [m.name for m in methods] == [
        "cot", "led", "led:depth=4,top_k=3", "led:latent_norm=true", "dola:layers=high", "led:min_p=0.05",
    ]  # fmt: skip
    assert [m.custom_params()["led"] for m in methods] == [
        False,
        {"method": "led"},
        {"method": "led", "depth": 4, "top_k": 3},
        {"method": "led", "latent_norm": True},
        {"method": "dola", "layers": "high"},
        {"method": "led", "min_p": 0.05},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no method"),
        ("cot,cot", "twice"),
        ("magic", "unknown method 'magic'"),
        ("led:deep=4", "'deep=4'"),
        ("led:depth", "'depth'"),
        ("cot:depth=4", "legal: none"),
    ],
)
def test_bad_lists(text: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        parse_methods(text)


def test_what_was_applied_is_compared() -> None:
    cot, led = parse_methods("cot,led:depth=4")
    assert cot.mismatch({"method": "none"}) is None
    assert led.mismatch({"method": "led", "depth": 4, "top_k": 8}) is None
    assert "depth" in str(led.mismatch({"method": "led", "depth": 8}))
    assert "method" in str(led.mismatch({"method": "none"}))
    assert "method" in str(cot.mismatch({"method": "led"}))
    assert "led_sglang installed" in str(cot.mismatch(None))
