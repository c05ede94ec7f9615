"""What must not start does not start, says why, and says what to do: real processes, two at a time."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from led_sglang.embedded import MODEL_DIR
from tests.server.servers import Server, install_plugin

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
LIMIT_S = 240.0


class Case(NamedTuple):
    arguments: tuple[str, ...]
    named: tuple[str, ...]  # what the log must say
    plugin: str = ""  # body of `register` of a second SGLang plugin, installed for this process alone
    release: str = ""  # what SGLang is said to be by the metadata that is found first
    is_refused: bool = True


INFO = "from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo as Info"
COPY = "SamplingBatchInfo.copy_for_forward"
RENAMED = f"{INFO}\nInfo.copy_for_step = Info.copy_for_forward\ndel Info.copy_for_forward"
ONLY_IN_SCHEDULERS = "import multiprocessing\nif multiprocessing.parent_process() is None: return\n"
HARMLESS = (
    "from sglang.srt.plugins.hook_registry import HookRegistry as R, HookType as T\n"
    "R.register('sglang.srt.layers.sampler.create_sampler', lambda original, *a, **k: original(*a, **k), T.AROUND)"
)

CASES = {
    "speculative": Case(("--speculative-algorithm", "DFLASH"), ("accepts drafts", "--speculative-algorithm DFLASH")),
    "pipeline": Case(("--pp-size", "2"), ("--pp-size 2", "--led disabled")),
    "depth": Case(("--led-depth", "13"), ("--led-max-depth", "[1, 12]", "layers", "got 13")),
    "max depth": Case(("--led-max-depth", "99"), ("--led-max-depth", "[1, 12]", "layers", "got 99")),
    "depth above max": Case(("--led-depth", "5", "--led-max-depth", "4"), ("--led-depth", "[1, 4]", "got 5")),
    "watermark": Case(("--enable-watermark",), ("--enable-watermark", "--led disabled")),
    "equal markers": Case(
        ("--led-think-open", "<think>", "--led-think-close", "<think>"), ("--led-think-open", "begin with the other")
    ),
    "no markers": Case(
        ("--model-path", "NO_MARKERS", "--dtype", "float32"),
        ("no thinking markers", "--reasoning-parser", "--led-think-open", "--led-phase all"),
    ),
    "renamed target": Case((), ("LED cannot run on SGLang", COPY, "gone"), RENAMED),
    "renamed in the scheduler": Case((), ("LED cannot run on SGLang", COPY, "gone"), ONLY_IN_SCHEDULERS + RENAMED),
    "too old a release": Case((), ("LED cannot run on SGLang 0.4.6", "0.5.17", "--led disabled"), release="0.4.6"),
    "too new a release": Case((), ("LED cannot run on SGLang 0.6.1", "below 0.6"), release="0.6.1"),
    "check": Case(("--check",), ("led_sglang: ok", "layers captured: 11", "<think>"), HARMLESS, is_refused=False),
}


def say_release(folder: Path, release: str) -> None:
    info = folder / f"sglang-{release}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {release}\n")


def without_markers(folder: Path) -> Path:
    """The embedded model with a tokenizer that has no <think> and no </think>."""
    shutil.copytree(MODEL_DIR, folder)
    for file in folder.glob("*token*.json"):
        file.write_text(file.read_text().replace("think>", "ponder>"))
    return folder


@pytest.fixture(scope="module")
def outcomes(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit status and log of every case."""
    no_markers = str(without_markers(tmp_path_factory.mktemp("checkpoints") / "no_markers"))
    plugins = tmp_path_factory.mktemp("plugins")

    def run(name: str) -> tuple[int, str]:
        case = CASES[name]
        environment = install_plugin(plugins / name, case.plugin) if case.plugin else {}
        if case.release:
            say_release(plugins / name, case.release)
            environment = {"PYTHONPATH": f"{plugins / name}:{os.environ.get('PYTHONPATH', '')}"}
        arguments = [no_markers if argument == "NO_MARKERS" else argument for argument in case.arguments]
        server = Server(*arguments, log=logs / f"refused {name}.log", environment=environment)
        status = server.wait_exit(LIMIT_S)
        return status, server.log.read_text(errors="replace")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_outcome(outcomes: dict[str, tuple[int, str]], name: str) -> None:
    case, (status, log) = CASES[name], outcomes[name]
    assert (status != 0) == case.is_refused, log[-2000:]
    for word in case.named:
        assert word in log, log[-2000:]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_refused and not case.plugin])
def test_a_users_mistake_is_reported_without_a_traceback(outcomes: dict[str, tuple[int, str]], name: str) -> None:
    assert "led_sglang: " in outcomes[name][1]
    assert "Traceback" not in outcomes[name][1]
