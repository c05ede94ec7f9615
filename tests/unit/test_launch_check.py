"""`--check` refuses what a start refuses before its weights, in the same words: both are tried in this process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from led_sglang import launch
from led_sglang.config.server import ENV_CONFIG
from led_sglang.cpu_platform import find_accelerator
from led_sglang.embedded import MODEL_DIR
from led_sglang.serving.ports import HeldPort
from tests.server import checkpoints

pytestmark = pytest.mark.skipif(find_accelerator() is not None, reason="as on a machine without an accelerator")

SOFT = ("--led-methods", "soft_thinking")
MARKERS = ("--led-think-open", "--led-think-close")
# arguments, and what the refusal must say
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "equal markers": ((MARKERS[0], "<think>", MARKERS[1], "<think>"), (*MARKERS, "must not begin with the other")),
    "a marker begins another": ((MARKERS[0], "<think>", MARKERS[1], "<think> so"), ("must not begin with the other",)),
    "an empty marker": ((MARKERS[0], "<think>", MARKERS[1], ""), ("must not be empty",)),
    "a broken marker": ((MARKERS[0], "\udcff", MARKERS[1], "</think>"), ("broken bytes",)),
    "half a pair": ((MARKERS[0], "<think>"), ("go together",)),
    "watermark": (("--enable-watermark",), ("--enable-watermark", "--led disabled")),
    "watermark's keys": (("--watermark-config", '{"key": "1"}'), ("--watermark-config", "--led disabled")),
    "what SGLang's launch refuses": (("--served-model-name", "a:b"), ("SGLang refuses", "colon")),
    "what SGLang's resolution refuses": (("--ssl-keyfile", "key.pem"), ("SGLang refuses", "--ssl-certfile")),
    "attention DP, new spelling": (
        ("--attn-dp-size", "2", "--tp-size", "2"),
        ("--attn-dp-size 2 without --enable-dp-lm-head",),
    ),
    "attention DP": (
        ("--enable-dp-attention", "--dp-size", "2", "--tp-size", "2"),
        ("--attn-dp-size 2 without --enable-dp-lm-head",),
    ),
    "a short last stage": (("--pp-size", "2"), ("--pp-size 2", "layers 7 to 12", "Use --led-max-depth 5, or start")),
    "soft, mixed chunks": ((*SOFT, "--enable-mixed-chunk"), ("--enable-mixed-chunk",)),
    "soft, long marker": ((*SOFT, MARKERS[0], "<think>", MARKERS[1], "Done."), ("with one token", "Done.")),
    "triton on a CPU": (("--led-backend", "triton"), ("--led-backend triton", "cpu")),
    "one pass": (("--led-form", "one_pass", "--enable-fp32-lm-head"), ("one_pass", "--enable-fp32-lm-head")),
    "LoRA on the head": (
        ("--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "q_proj", "lm_head"),
        ("lm_head", "--lora-target-modules"),
    ),
    "LoRA on all": (("--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "all"), ("'all'",)),
    "an adapter of the head": (("--lora-paths", "mine=ADAPTER"), ("lm_head", "the adapter 'mine'")),
    "no such model": (("--model-path", "ADAPTER"), ("SGLang refuses",)),
    "no capture": (
        ("--model-path", "LOOPED", "--led-max-depth", "4"),
        ("IQuestLoopCoderForCausalLM", "several times", "--led-max-depth 1"),
    ),
    "no capture, another method": (
        ("--model-path", "LOOPED", "--led-max-depth", "1", "--led-methods", "confident"),
        ("IQuestLoopCoderForCausalLM",),
    ),
    "a taken port": (("--port", "TAKEN"), ("cannot listen", "--port")),
}
ACCEPTED: dict[str, tuple[tuple[str, ...], str]] = {
    "attention DP": (
        ("--enable-dp-attention", "--dp-size", "2", "--tp-size", "2", "--enable-dp-lm-head"),
        "layers captured: 11",
    ),
    "a pipeline": (("--pp-size", "2", "--led-max-depth", "5"), "layers captured: 5"),
    "tokenizer workers": (("--tokenizer-worker-num", "2"), "layers captured: 11"),
    "token ids": (("--skip-tokenizer-init",), "layers captured: 11"),
    "the embedded model": ((), "layers captured: 11, markers: '<think>'"),
    "markers of several tokens": ((MARKERS[0], "<think>", MARKERS[1], "Done."), "markers: '<think>'"),
    "explicit markers before the parser's": (
        (MARKERS[0], "</think>", MARKERS[1], "<think>", "--reasoning-parser", "qwen3"),
        "markers: '</think>'",
    ),
    "the parser that the template tells": (("--reasoning-parser", "auto"), "markers: '<think>'"),
    "a parser without markers": (("--reasoning-parser", "response_template"), "markers: '<think>'"),
    "the refusal's way out": (("--model-path", "LOOPED", "--led-max-depth", "1"), "layers captured: 0"),
    "LoRA elsewhere": (("--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "q_proj"), "captured: 11"),
    "without LED": (("--led", "disabled"), "led_sglang: ok"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("check")
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj", "lm_head"], "r": 8}))
    looped = folder / "looped"
    config = checkpoints.ARCHITECTURES["llama"].config()
    config.architectures = ["IQuestLoopCoderForCausalLM"]
    config.save_pretrained(looped)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / file, looped / file)
    with HeldPort() as free, HeldPort() as taken:
        taken._socket.listen(1)
        yield {
            "ADAPTER": str(folder / "adapter"),
            "LOOPED": str(looped),
            "FREE": str(free.number),
            "TAKEN": str(taken.number),
        }


class Started(Exception):
    """The start has come as far as to load weights."""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(server_args: object, with_led: bool) -> int:
        raise Started

    # SGLang loads plugins once in a process, and an earlier test may have done so without LED.
    monkeypatch.setenv(ENV_CONFIG, "{}")
    launch._register_late()
    monkeypatch.setattr(launch, "_run", run)
    monkeypatch.setenv(ENV_CONFIG, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def arguments_of(words: tuple[str, ...], places: dict[str, str]) -> list[str]:
    found = ["--port", "FREE", *words]
    for name, place in places.items():
        found = [word.replace(name, place) for word in found]
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_both_in_the_same_words(
    name: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, named = arguments_of(REFUSED[name][0], places), REFUSED[name][1]
    said = []
    for more in ([], ["--check"]):
        assert launch.main([*arguments, *more]) == 2
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("led_sglang: ")])
    assert said[0] == said[1]
    assert len(said[0]) == 1
    for word in named:
        assert word in said[0][0]


def test_a_check_says_what_memory_a_batch_takes(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """From the model's configuration and the number of requests alone."""
    reported = []
    for requests in ("32", "4096"):
        arguments = arguments_of(("--max-running-requests", requests, "--check"), places)
        assert launch.main(arguments) == 0
        reported += [line for line in capsys.readouterr().out.splitlines() if "LED takes" in line]
    config = json.loads((MODEL_DIR / "config.json").read_text())
    for line, rows in zip(reported, (48, 4112), strict=True):
        buffer = (config["num_hidden_layers"] - 1) * rows * config["hidden_size"] * 4
        assert f"batches of up to {rows} rows (capture buffer {buffer / 1e6:.1f} MB, rows of eager prefills " in line
        assert line.endswith(" MB, step 67.1 MB)")


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_by_both(name: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, reported = arguments_of(ACCEPTED[name][0], places), ACCEPTED[name][1]
    with pytest.raises(Started):
        launch.main(arguments)
    capsys.readouterr()
    assert launch.main([*arguments, "--check"]) == 0
    assert reported in capsys.readouterr().out


def test_a_plugin_that_is_not_loaded_ends_the_start_in_the_launcher() -> None:
    """SGLANG_PLUGINS names others: no hook is in place, and no scheduler is spawned to find that out."""
    command = [sys.executable, "-m", "led_sglang.launch", "--check", "--device", "cpu"]
    environment = {**os.environ, "SGLANG_PLUGINS": "another"}
    environment.pop(ENV_CONFIG, None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the hook is not in place" in done.stderr, done.stderr[-2000:]
