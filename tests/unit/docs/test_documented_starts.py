"""Every start that documentation, configurations, image and manifests show serves the model that it shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from led_sglang import launch
from led_sglang.config.server import ENV_CONFIG
from led_sglang.embedded import MODEL_DIR
from led_sglang.serving.command_line import split_arguments

ROOT = Path(__file__).resolve().parents[3]
HISTORY = ROOT / "docs/log.md"
KINDS = [page for kind in ("tutorials", "how-to") for page in (ROOT / "docs" / kind).glob("*.md")]
DOCS = sorted({*(ROOT / "docs").glob("*.md"), *KINDS} - {HISTORY})
PAGES = [ROOT / "README.md", *DOCS, ROOT / "server_configs/README.md"]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
COMMAND = re.compile(r"(?:python3? -m led_sglang\.launch|led-sglang serve)\b([^`#&|]*)")
IMAGE = re.compile(r"docker run [^`#]*? led-sglang(?::\S+)?[ ]([^`#]*)")
MAKE = re.compile(r"make serve(?: ARGS=(?P<quote>[\"'])(?P<arguments>[^\"']*)(?P=quote))?")
QUANTISED = tuple(  # released in 8 or 4 bits: the checkpoint says in what it is served
    f"server_configs/{name}"
    for name in ("deepseek-r1-0528", "deepseek-v3.2", "glm-4.7", "gpt-oss", "kimi-k2-thinking", "minimax-m2")
)
PLACEHOLDERS = {'"$KEY"': "key", "$(NODE_RANK)": "1"}


def commands_in(text: str) -> Iterator[str]:
    """The arguments of each start that a text shows."""
    text = re.sub(r"\\\n(?:#\s+)?\s*", " ", filled(text))
    for pattern in (COMMAND, IMAGE):
        for line in text.splitlines():
            yield from (match[1].strip() for match in pattern.finditer(line))
    yield from (match["arguments"] or "" for match in MAKE.finditer(text))


def filled(text: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def image_entrypoint() -> list[str]:
    [words] = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    found: list[str] = yaml.safe_load(words)
    assert found[:3] == ["python3", "-m", "led_sglang.launch"]
    return found[3:]


def starts() -> Iterator[tuple[str, list[str]]]:
    for page in [*PAGES, ROOT / "Makefile", ROOT / "Dockerfile", *sorted((ROOT / "examples").glob("*.py"))]:
        for command in commands_in(page.read_text()):
            words = shlex.split(command)
            if not any(word.startswith(("...", "$(ARGS)", "'...")) for word in words):
                yield page.name, [word for word in words if word != "--check"]
    for manifest in MANIFESTS:
        for document in yaml.safe_load_all(manifest.read_text()):
            for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
                if container["image"].startswith("led-sglang"):
                    yield manifest.name, [*image_entrypoint(), *map(filled, container["args"])]
    for config in sorted((ROOT / "server_configs").glob("*.yaml")):
        yield config.name, [*image_entrypoint(), "--config", f"server_configs/{config.name}"]


STARTS = [pytest.param(words, id=f"{where}: {' '.join(words)}"[:100]) for where, words in starts()]


def shown_model(words: list[str]) -> str:
    """As somebody reads it."""
    text = " ".join(words).replace("=", " ")
    for flag, name in (("--model-path", None), ("--config", "model-path")):
        if flag in text.split():
            value = text.split()[text.split().index(flag) + 1]
            settings: dict[str, Any] = {} if name is None else yaml.safe_load((ROOT / value).read_text())
            return str(settings[name]) if name else value
    return str(MODEL_DIR)


def test_every_place_shows_one() -> None:
    places = {where for where, _ in starts()}
    assert places >= {"README.md", "deploy.md", "embedded.md", "inspector.md", "Dockerfile", "led.yaml"}
    assert places >= {"led-two-nodes.yaml", "qwq-32b-led.yaml"}
    assert len(STARTS) >= 30
    models = {shown_model(words) for _, words in starts()}
    assert models >= {str(MODEL_DIR), "Qwen/Qwen3-8B", "Qwen/QwQ-32B"}
    assert len(models) == 19, "the paper's five, what people serve, the embedded one, its forerunner, one with a draft"


HEADS = {  # of attention, from the models' cards: their files are out of reach here
    "Qwen/QwQ-32B": 40,
    "deepseek-ai/DeepSeek-R1-0528": 128,
    "deepseek-ai/DeepSeek-V3.2": 128,
    "moonshotai/Kimi-K2-Thinking": 64,
    "zai-org/GLM-4.7-FP8": 96,
    "MiniMaxAI/MiniMax-M2": 48,
    "Qwen/Qwen3-Next-80B-A3B-Thinking": 16,
    "Qwen/Qwen3-4B-Thinking-2507": 32,
    "Qwen/Qwen3-8B": 32,
    "Qwen/Qwen3-30B-A3B-Thinking-2507": 32,
    "Qwen/Qwen3.5-27B": 24,
}


@pytest.mark.parametrize("words", STARTS)
def test_the_ranks_divide_the_heads(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else SGLang asserts while it builds the model."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(ENV_CONFIG, raising=False)
    server_args, _ = launch.server_arguments(*split_arguments(words))
    if server_args.tp_size > 1:
        assert HEADS[server_args.model_path] % server_args.tp_size == 0


@pytest.mark.parametrize("words", STARTS)
def test_it_serves_the_model_it_shows(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(ENV_CONFIG, raising=False)
    server_args, is_embedded = launch.server_arguments(*split_arguments(words))
    assert server_args.model_path == shown_model(words)
    assert is_embedded == (server_args.model_path == str(MODEL_DIR))
    if not is_embedded:
        assert server_args.served_model_name is None
        if "--config" in " ".join(words):
            [name] = re.findall(r"server_configs/\S+", " ".join(words))
            assert server_args.dtype == ("auto" if name.startswith(QUANTISED) else "bfloat16")
