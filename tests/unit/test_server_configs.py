"""The server configurations are fair pairs of arguments that exist."""

import argparse
import itertools
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "server_configs"
MODELS = {
    "Qwen/Qwen3-4B-Thinking-2507",
    "XiaomiMiMo/MiMo-7B-RL",
    "Qwen/Qwen3-30B-A3B-Thinking-2507",
    "Qwen/QwQ-32B",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
STEMS = sorted(path.name.removesuffix("-led.yaml") for path in CONFIGS.glob("*-led.yaml"))


def load(name: str) -> dict[str, object]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def is_led(key: str) -> bool:
    return key == "led" or key.startswith("led-")


def test_all_models_of_the_paper_and_no_file_without_its_pair() -> None:
    assert {load(f"{stem}-led")["model-path"] for stem in STEMS} == MODELS
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {
        f"{s}-{k}.yaml" for s in STEMS for k in ("led", "baseline")
    }


@pytest.mark.parametrize("stem", STEMS)
def test_a_pair_differs_only_in_the_led_keys(stem: str) -> None:
    led, baseline = load(f"{stem}-led"), load(f"{stem}-baseline")
    differing = {key for key in led | baseline if led.get(key) != baseline.get(key)}
    assert differing == {"led"}
    assert (led["led"], baseline["led"]) == (True, False)  # how YAML reads on and off
    assert {key: led[key] for key in led if is_led(key) and key != "led"} == {
        "led-depth": 8,
        "led-top-k": 8,
        "led-phase": "think",
    }


@pytest.mark.parametrize("stem", STEMS)
def test_every_other_key_is_an_argument_of_sglang(stem: str) -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    assert {key for key in load(f"{stem}-led") if not is_led(key)} <= known


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kind", ["led", "baseline"])
def test_the_launcher_reads_it(stem: str, kind: str) -> None:
    from led_sglang.launch import server_config_of, split_arguments

    options, rest = split_arguments(["--config", str(CONFIGS / f"{stem}-{kind}.yaml")])
    config = server_config_of(options)
    assert (config.default_on, config.depth, config.top_k, config.phase) == (kind == "led", 8, 8, "think")
    [passed_on] = [Path(value) for flag, value in itertools.pairwise(rest) if flag == "--config"]
    try:
        assert not any(map(is_led, yaml.safe_load(passed_on.read_text())))
    finally:
        passed_on.unlink()
