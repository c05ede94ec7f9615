"""What SGLang's own models make of the layers that LED asks for, in each file that has the setter."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.models
from torch import nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.capture import Capture, require_layers

NUM_LAYERS = 12
SETTER = "set_eagle3_layers_to_capture"
OFF_BY_ONE = {"DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM"}  # add 1 only if the first id is 1
NOT_PYTORCH = {"MindSporeForCausalLM"}
DEPTHS = (2, 8, 10, 11, 12)  # 11 of 12 layers from layer 1 on; at 10 of 12 the first id is 1


@cache
def classes_with_setter(is_delegated: bool = False) -> list[tuple[str, str]]:
    """(module, class) of models whose setter reaches `self.model`, the decoder, or `self.language_model`."""
    found = []
    for file in sorted(Path(sglang.srt.models.__path__[0]).glob("*.py")):
        text = file.read_text()
        for node in ast.parse(text).body if f"def {SETTER}" in text else ():
            if not isinstance(node, ast.ClassDef):
                continue
            setters = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == SETTER]
            source = "".join(ast.unparse(setter) for setter in setters)
            if "self.language_model" in source if is_delegated else "self.model" in source:
                found.append((file.stem, node.name))
    return found


class Decoder(nn.Module):
    """As much of an inner model as the setters write to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers_to_capture: list[int] = []
        self.layers = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS + 1))

    def set_eagle3_layers_to_capture(self, layers: list[int]) -> None:  # the engine's name and meaning
        self.layers_to_capture = layers
        for layer in layers:
            self.layers[layer]._is_layer_to_capture = True  # type: ignore[assignment]

    set_dflash_layers_to_capture = set_eagle3_layers_to_capture


class Language(Decoder):
    """A language model inside another one, with the setter that adds 1 only sometimes."""

    def set_eagle3_layers_to_capture(self, layers: list[int]) -> None:
        self.layers_to_capture = [layer + 1 for layer in layers] if layers[0] == 1 else list(layers)


def model_of(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An instance without weights."""
    loaded = import_module(f"sglang.srt.models.{module}")
    group = SimpleNamespace(is_last_rank=True)
    if hasattr(loaded, "get_parallel"):
        monkeypatch.setattr(loaded, "get_parallel", lambda: SimpleNamespace(pp_group=group))
    cls = getattr(loaded, name)
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    if (module, name) in classes_with_setter(is_delegated=True):
        model.language_model = Language()
    else:
        model.model = Decoder()
    model.pp_group, model.config = group, SimpleNamespace(num_hidden_layers=NUM_LAYERS, text_config=None)
    return model


@pytest.mark.parametrize(("module", "name"), classes_with_setter())
def test_the_layers_that_were_asked_for_are_captured(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NOT_PYTORCH:
        pytest.skip("not made of PyTorch modules")
    changed = set()
    for depth in DEPTHS:
        layers = tuple(range(NUM_LAYERS - 1, NUM_LAYERS - depth, -1))
        model = model_of(module, name, monkeypatch)
        getattr(model, SETTER)([layer - 1 for layer in sorted(layers)])
        changed.add(list(model.model.layers_to_capture) != sorted(layers))
        model = model_of(module, name, monkeypatch)
        Capture(model, layers)
        assert sorted(model.model.layers_to_capture) == sorted(layers)
    assert changed == ({True, False} if name in OFF_BY_ONE else {False}), "what SGLang makes of it without us"


@pytest.mark.parametrize(("module", "name"), classes_with_setter(is_delegated=True))
def test_a_setter_that_asks_an_inner_model_is_read_back_too(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for depth in DEPTHS:
        layers = tuple(range(NUM_LAYERS - 1, NUM_LAYERS - depth, -1))
        model = model_of(module, name, monkeypatch)
        Capture(model, layers)
        assert sorted(model.language_model.layers_to_capture) == sorted(layers)


def test_every_setter_of_the_release_is_one_of_these() -> None:
    """Those of decoders, which the others call, aside."""
    defined = set()
    for file in Path(sglang.srt.models.__path__[0]).glob("*.py"):
        for node in ast.parse(text).body if f"def {SETTER}" in (text := file.read_text()) else ():
            if isinstance(node, ast.ClassDef) and any(getattr(item, "name", "") == SETTER for item in node.body):
                defined.add((file.stem, node.name))
    tried = {*classes_with_setter(), *classes_with_setter(is_delegated=True)}
    decoders = {
        ("qwen2_moe", "Qwen2MoeModel"),
        ("qwen3_next", "Qwen3NextModel"),
        ("qwen3_5", "Qwen3_5ForCausalLM"),
    }
    assert defined - tried == decoders


def test_the_list_is_not_empty() -> None:
    assert len(classes_with_setter()) > 15 and OFF_BY_ONE <= {name for _, name in classes_with_setter()}


def test_a_model_that_does_not_say_or_marks_other_layers_is_refused() -> None:
    with pytest.raises(CaptureError, match="0 of its modules have layers_to_capture set"):
        require_layers(nn.Sequential(Decoder()), [3, 4])
    two = nn.Sequential(Decoder(), Decoder())
    for decoder in two:
        decoder.set_eagle3_layers_to_capture([3, 4])
    with pytest.raises(CaptureError, match="2 of its modules"):
        require_layers(two, [3, 4])
    marked = Decoder()
    marked.set_eagle3_layers_to_capture([2, 3])
    with pytest.raises(CaptureError, match=r"outputs of layers \[3, 4\], it would capture \[2, 3\]"):
        require_layers(marked, [3, 4])
