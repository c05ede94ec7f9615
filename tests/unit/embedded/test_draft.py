"""The draft is the embedded model without some of its layers, and agrees with it more often than not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from led_sglang.embedded import MODEL_DIR, draft, tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drafts") / "new" / "draft"
    assert draft.main(["--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    target, drafted = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (MODEL_DIR, folder))
    return target, drafted


def test_every_weight_is_the_models(both: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    target, drafted = both
    assert len(drafted.model.layers) == len(draft.LAYERS) < len(target.model.layers)
    for place, layer in enumerate(draft.LAYERS):
        theirs, ours = target.model.layers[layer].state_dict(), drafted.model.layers[place].state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(target.state_dict()[name], drafted.state_dict()[name])


def test_the_tokens_are_the_models(folder: Path) -> None:
    assert (folder / "tokenizer.json").read_bytes() == (MODEL_DIR / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(folder)("<think>")["input_ids"]


def test_it_drafts_what_the_model_says(both: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    tokenizer, agreed, asked = AutoTokenizer.from_pretrained(MODEL_DIR), 0, 0
    for problem in tasks.generate("arithmetic", "held_out", 8, seed=3):
        ids = torch.tensor([tokenizer(f"{problem.question}<think>\n{problem.thinking}\n</think>")["input_ids"]])
        with torch.no_grad():
            target, drafted = (model(ids).logits.argmax(-1) for model in both)
        agreed, asked = agreed + int((target == drafted).sum()), asked + ids.numel()
    assert agreed > 0.6 * asked, (agreed, asked)


def test_written_twice_is_the_same(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    draft.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
