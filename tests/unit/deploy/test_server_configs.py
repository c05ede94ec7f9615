"""The server configurations are fair pairs of arguments that exist."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from led_sglang.embedded import MODEL_DIR
from led_sglang.serving.ports import HeldPort

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "server_configs"
PAPER = {
    "Qwen/Qwen3-4B-Thinking-2507",
    "XiaomiMiMo/MiMo-7B-RL",
    "Qwen/Qwen3-30B-A3B-Thinking-2507",
    "Qwen/QwQ-32B",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
SINCE = {
    "Qwen/Qwen3.5-27B",
    "Qwen/Qwen3-Next-80B-A3B-Thinking",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-R1-0528",
    "deepseek-ai/DeepSeek-V3.2",
    "zai-org/GLM-4.7-FP8",
    "moonshotai/Kimi-K2-Thinking",
    "MiniMaxAI/MiniMax-M2",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "microsoft/Phi-4-reasoning",
    "mistralai/Magistral-Small-2509",
}
STEMS = sorted(path.name.removesuffix("-led.yaml") for path in CONFIGS.glob("*-led.yaml"))


def load(name: str) -> dict[str, object]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def is_led(key: str) -> bool:
    return key == "led" or key.startswith("led-")


def test_all_models_of_the_paper_and_since_and_no_file_without_its_pair() -> None:
    assert {load(f"{stem}-led")["model-path"] for stem in STEMS} == PAPER | SINCE
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
    from led_sglang.serving.command_line import server_config_of, split_arguments

    options, rest = split_arguments(["--config", str(CONFIGS / f"{stem}-{kind}.yaml")])
    config = server_config_of(options)
    assert (config.default_on, config.depth, config.top_k, config.phase) == (kind == "led", 8, 8, "think")
    assert rest == []
    assert "model-path" in options.settings
    assert not any(map(is_led, options.settings))


ARCHITECTURE_OF = {  # in tests.server.checkpoints, or a row of the matrix
    "qwen3-4b-thinking-2507": "qwen3",
    "mimo-7b-rl": "mimo",
    "qwen3-30b-a3b-thinking-2507": "qwen3_moe",
    "qwq-32b": "qwen2",
    "deepseek-r1-distill-llama-8b": "llama",
    "qwen3.5-27b": "qwen3_5",
    "qwen3-next-80b-a3b-thinking": "qwen3_next",
    "gpt-oss-20b": "gpt_oss",
    "deepseek-r1-0528": "deepseek_v3",
    "deepseek-v3.2": "deepseek_v3",
    "glm-4.7": "glm4_moe",
    "kimi-k2-thinking": "deepseek_v3",
    "minimax-m2": "minimax_m2",
    "nemotron-3-nano-30b-a3b": "nemotron_h",
    "phi-4-reasoning": "phi3",
    "magistral-small-2509": "mistral",
}
CHANGES = {  # of the row's configuration
    "deepseek-v3.2": {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "index_head_dim": 32,
        "index_n_heads": 4,
        "index_topk": 64,
    }
}
MARKER_OF = {"gpt-oss-20b": "<|channel|>analysis<|message|>", "magistral-small-2509": "[THINK]"}
SPECIAL = ["<|channel|>", "<|message|>", "<|end|>", "[THINK]", "[/THINK]", "<tool_call>"]
CHECK_ALL = """
import json, sys
import torch
from led_sglang.launch import main
of_this_machine = torch.cuda.get_device_capability
for config, arguments in json.loads(sys.argv[2]):
    # For sparse attention SGLang asks what the GPU is.
    torch.cuda.get_device_capability = (lambda *args: (9, 0)) if "v3.2" in config else of_this_machine
    print(config, main(["--config", config, "--check", "--port", sys.argv[1], *arguments]), flush=True)
"""


def write_config(name: str, folder: Path) -> None:
    """What --check reads of a checkpoint: its configuration and its tokenizer, no weights."""
    from transformers import AutoTokenizer

    from tests.models.zoo import ENTRIES, write_served_config
    from tests.server.checkpoints import ARCHITECTURES, serve_as_mimo

    entry = ARCHITECTURES.get(name) or ENTRIES[name]
    config = entry.config()
    config.max_position_embeddings = 131072  # the files ask for the models' real lengths
    config.architectures = [entry.served_as]
    config.save_pretrained(folder)
    if name not in ARCHITECTURES:
        write_served_config(ENTRIES[name], folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.save_pretrained(folder)
    if name == "mimo":
        serve_as_mimo(folder)


def arguments_here(name: str) -> list[str]:
    """What the model wants of a machine without a GPU; the files are for one with."""
    from tests.models.zoo import ENTRIES

    return list(ENTRIES[name].arguments) if name in ENTRIES else []


@pytest.mark.timeout(600)
def test_check_accepts_every_file_and_names_its_model(tmp_path: Path) -> None:
    """The documented command, where the model's name is a folder; in one process, as importing SGLang takes longer."""
    configs: list[str] = []
    arguments: dict[str, list[str]] = {}
    for stem in STEMS:
        folder = tmp_path / str(load(f"{stem}-led")["model-path"])
        folder.mkdir(parents=True)
        write_config(ARCHITECTURE_OF[stem], folder)
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | CHANGES.get(stem, {})))
        arguments[stem] = arguments_here(ARCHITECTURE_OF[stem])
        configs += [str(CONFIGS / f"{stem}-{kind}.yaml") for kind in ("led", "baseline")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path]))}
    with HeldPort() as port:
        jobs = [(config, arguments[Path(config).stem.rpartition("-")[0]]) for config in configs]
        command = [sys.executable, "-c", CHECK_ALL, str(port.number), json.dumps(jobs)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540, check=False
        )
    said = [line.removeprefix("led_sglang: ") for line in done.stdout.splitlines()]
    expected = []
    for config in configs:
        model = load(Path(config).stem)["model-path"]
        marker = MARKER_OF.get(Path(config).stem.rpartition("-")[0], "<think>")
        expected += [f"ok, model: {model}, layers captured: 8, markers: {marker!r}", f"{config} 0"]
    memory = [line for line in said if line.startswith(("LED takes", "without CUDA graphs"))]
    assert [line for line in said if line not in memory] == expected, done.stdout[-2000:] + done.stderr[-3000:]
    assert sum("device memory for batches of up to" in line for line in memory) == len(configs)
