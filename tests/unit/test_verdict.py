"""Whether LED is for a model: by hand, for every reason that ends a depth, and what a server finds beside a model."""

import json
from pathlib import Path
from typing import Any

import pytest

from led_sglang.verdict import FILE_NAME, judge, line_beside

KS = ("1", "2", "4", "8")


def rows(*layers: tuple[float, float]) -> list[dict[str, Any]]:
    """Layers from the first: entropy, and coverage at k 2, which k 1 has 0.1 more of and each larger k 0.1 less."""
    return [
        {"layer": i + 1, "entropy": h, "coverage": {k: r + 0.1 * (1 - j) for j, k in enumerate(KS)}}
        for i, (h, r) in enumerate(layers)
    ]


# As Qwen2.5-Coder-0.5B's upper layers, as SmolLM2's, as the embedded model's.
WIDE = rows((8.4, 0.2), (3.8, 0.55), (1.8, 0.66), (0.82, 0.83), (0.2, 1.0))
JUNK = rows((0.1, 0.0), (0.05, 0.0), (0.04, 0.01), (0.06, 0.05), (1.2, 1.0))
SURE = rows((0.9, 0.4), (0.7, 0.5), (0.27, 0.73), (0.28, 0.78), (0.49, 1.0))
NOISE = rows((11.0, 0.0), (11.0, 0.0), (11.0, 0.0), (11.0, 0.1), (1.2, 1.0))


def test_yes() -> None:
    verdict = judge(WIDE, SURE, 0.08)
    assert (verdict["answer"], verdict["depth"], verdict["top_k"]) == ("yes", 4, 2)
    assert not verdict["latent_norm"] and verdict["exploration_rate"] == 0.08
    for words in ("layers 2 to 4", "0.82 to 3.80 nats beside 0.20", "depth 4", "about 8 %", "layer 1 has only 0.20"):
        assert words in verdict["words"]


@pytest.mark.parametrize(
    ("unnormed", "why"),
    [(JUNK, "layer 4 is surer than the last (0.06 nats beside 1.20)"), (NOISE, "layer 4 has only 0.10")],
    ids=["surer", "noise"],
)
def test_no_says_why(unnormed: list[dict[str, Any]], why: str) -> None:
    verdict = judge(unnormed, SURE, 0.2)
    assert (verdict["answer"], verdict["depth"], verdict["top_k"]) == ("no", 1, 1)
    assert verdict["words"].startswith(f"no: {why}")
    assert "with the norm, layer 4 is surer than the last (0.28 nats beside 0.49)" in verdict["words"]


def test_only_with_the_norm() -> None:
    verdict = judge(JUNK, WIDE, 0.08)
    assert (verdict["answer"], verdict["depth"], verdict["latent_norm"]) == ("latent_norm", 4, True)
    assert verdict["words"].startswith("only with latent_norm: layer 4 is surer")


def test_the_form_without_the_norm_comes_first() -> None:
    verdict = judge(rows((0.1, 0.9), (0.5, 0.9), (0.2, 1.0)), WIDE[2:], 0.08)
    assert (verdict["answer"], verdict["depth"], verdict["top_k"]) == ("yes", 2, 8)
    assert "layer 2 is less sure" in verdict["words"] and "layer 1 is surer" in verdict["words"]


def test_every_layer_may_be_read() -> None:
    verdict = judge(rows((2.0, 0.9), (1.0, 0.9), (0.2, 1.0)), SURE[:3], 0.5)
    assert verdict["depth"] == 3 and "(layer" not in verdict["words"]


def test_a_layer_that_is_not_finite_ends_the_depth() -> None:
    assert "layer 1 is not finite" in judge(rows((float("nan"), 0.9), (0.2, 1.0)), SURE[:2], 0.5)["words"]


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 2)])
def test_too_few_layers(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"{first} and {second} were given"):
        judge(WIDE[:first], WIDE[:second], 0.1)


def test_what_lies_beside_a_model(tmp_path: Path) -> None:
    assert line_beside(str(tmp_path)) is None
    assert line_beside("a/name/of/a/hub") is None
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps({"verdict": judge(WIDE, SURE, 0.08)}))
    line = line_beside(str(tmp_path))
    assert line is not None and "\n" not in line and str(path) in line and "yes: layers 2 to 4" in line


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"verdict": 3}', '{"verdict": {}}', "\udcff"])
def test_a_file_that_is_no_verdict_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(text.encode(errors="surrogateescape"))
    line = line_beside(str(tmp_path))
    assert line is not None and "is no verdict of led_sglang.analysis" in line


@pytest.mark.parametrize(("entropy", "answer"), [(0.5, "no"), (0.51, "no"), (0.54, "no"), (0.56, "yes")])
def test_a_hair_is_no_difference(entropy: float, answer: str) -> None:
    verdict = judge(rows((0.9, 0.9), (entropy, 0.9), (0.5, 1.0)), SURE[2:], 0.1)
    assert verdict["answer"] == answer
    if 0.5 < entropy < 0.55:
        assert f"layer 2 is hardly less sure than the last ({entropy:.2f} nats beside 0.50)" in verdict["words"]
