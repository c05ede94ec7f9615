"""Layer statistics by hand and on small random checkpoints of several families."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from led_sglang import analysis
from led_sglang.embedded import model_path

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIGS = {
    "qwen3": Qwen3Config(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8, initializer_range=0.5),
    "llama": LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=2, initializer_range=0.5),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.5),
}


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_layer_sums_by_hand() -> None:
    final_ids = torch.tensor([[0, 1], [3, 2]])
    sums = analysis.layer_sums(logs([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]), final_ids, (1, 2))
    assert sums.entropy == pytest.approx(1.5 * math.log(2) + 2 * math.log(2))
    assert sums.top_probability == pytest.approx(0.75)
    assert sums.mass == pytest.approx((0.5 + 0.25, 0.75 + 0.5))


def test_coverage_by_hand() -> None:
    # Final top 2 is (0, 1) and (3, 2); the layer's own is (1, 3) and (3, 2).
    final_ids = torch.tensor([[0, 1], [3, 2]])
    sums = analysis.layer_sums(logs([0.1, 0.5, 0.05, 0.35], [0.1, 0.2, 0.3, 0.4]), final_ids, (1, 2))
    assert sums.coverage == pytest.approx((0 + 1, 0.5 + 1))


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_of_a_family(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    ids = torch.arange(1, 11)
    analyser = analysis.Analyser(model, temperature=1.0)
    analyser.add(ids, start=4)
    document = analyser.document("small")
    assert document["positions"] == 6 and [row["layer"] for row in document["layers"]] == [1, 2, 3]
    with torch.no_grad():
        out = model(ids[None], output_hidden_states=True)
        final = torch.softmax(out.logits[0, 3:-1].float(), -1)
        latent = torch.softmax(model.get_output_embeddings()(out.hidden_states[1][0, 3:-1]).float(), -1)
    assert document["exploration_rate"] == pytest.approx(1 - float(final.max(-1).values.mean()), abs=1e-5)
    for row, probs in ((document["layers"][-1], final), (document["layers"][0], latent)):
        assert row["entropy"] == pytest.approx(float(torch.special.entr(probs).sum(-1).mean()), abs=1e-4)
    assert set(document["layers"][-1]["coverage"].values()) == {1.0}


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen3"]).eval()
    documents = []
    for rows in (256, 3):
        monkeypatch.setattr(analysis, "ROWS_AT_A_TIME", rows)
        analyser = analysis.Analyser(model)
        analyser.add(torch.arange(1, 20), start=1)
        documents.append(analyser.document("x"))
    assert [r["entropy"] for r in documents[0]["layers"]] == pytest.approx(
        [r["entropy"] for r in documents[1]["layers"]]
    )


def test_command_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"problem": "What is 3 + 4?"}\nCompute 12 - 5.\n\n')
    arguments = [model_path(), "--prompts", str(prompts), "--generate", "4", "--out", str(tmp_path / "out.json")]
    assert analysis.main(arguments) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["layers"]) == 12 and document["positions"] == 8
    assert 0 <= document["exploration_rate"] < 1
    assert "E[1 - max p]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"), [(None, "is missing"), ("{", ":1: not JSON"), ('{"a": 1}', ":1: no prompt")]
)
def test_bad_prompts(text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts"
    if text is not None:
        path.write_text(text)
    assert analysis.main([model_path(), "--prompts", str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "legal"),
    [
        ("--temperature", "0", "is not a number in (0, inf)"),
        ("--generate", "-1", "is not an integer in [0, inf)"),
        ("--limit", "0", "is not an integer in [1, inf)"),
        ("--dtype", "int8", "(choose from"),
        ("--device", "abacus", "is not a device of this machine"),
    ],
)
def test_bad_arguments(option: str, value: str, legal: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        analysis.main([model_path(), "--prompts", "none", option, value])
    message = capsys.readouterr().err
    assert f"argument {option}: " in message and f"'{value}'" in message and legal in message


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 3 + 4?")
    arguments = [model_path(), "--prompts", str(prompts), "--generate", "1", "--out"]
    for place, message in ((prompts / "out.json", "is a file, not a folder"), (tmp_path, "is a directory, not a file")):
        assert analysis.main([*arguments, str(place)]) == 1, "said before the model is loaded"
        assert message in (shown := capsys.readouterr()).err and not shown.out
