"""Real processes: their exit status and words when the output or the terminal is not what they hoped for."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from led_sglang.cli.endings import guarded
from led_sglang.evals import __main__ as evals
from tests.unit.evals.fake_server import TOKEN, FakeServer

ROOT = Path(__file__).parents[3]
PLAIN = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: FakeServer) -> Path:
    folder = tmp_path_factory.mktemp("endings")
    requested = ["--task", "embedded", "--limit", "2", "--samples", "1", "--methods", "cot", "--quiet"]
    assert evals.main(["run", *requested, "--base-url", server.url, "--out", str(folder / "run")]) == 0
    about = {"part": "ops", "kind": "time", "run": "naive", "explored_rows": 1, "explore_rate": 0.1}
    lines = [{**about, "rows": n, "ms": 2.0 * n} for n in (1, 8)]
    (folder / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


COMMANDS = {
    "trace": ["led_sglang.trace", "Why?", "--url", "{url}", "--candidates"],
    "compact": ["led_sglang.evals", "compact", "{folder}/run"],
    "patches": ["led_sglang.patches", "check"],
    "problems": ["led_sglang.embedded.problems", "--count", "20"],
    "countdown": ["led_sglang.embedded.countdown", "--count", "20"],
    "draft": ["led_sglang.embedded.draft", "--out", "{folder}/draft"],
    "evaluate": ["training.evaluate", "--problems", "2", "--base-url", "{url}/v1"],
    "plot": ["benchmarks.plot", "--results", "{folder}", "--out", "{folder}/pictures"],
}


def command(name: str, server: FakeServer, folder: Path) -> list[str]:
    url = server.url.removesuffix("/v1")
    return [sys.executable, "-m", *(word.format(url=url, folder=folder) for word in COMMANDS[name])]


@pytest.mark.parametrize("name", COMMANDS)
def test_nobody_reads(name: str, server: FakeServer, folder: Path) -> None:
    """As in `command | head -1`, and quicker: the pipe is closed before the first line."""
    ours, its = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        command(name, server, folder), stdout=its, stderr=subprocess.PIPE, env=PLAIN, cwd=ROOT, check=False
    )
    os.close(its)
    assert (ended.returncode, ended.stderr.decode()) == (141, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, server: FakeServer, folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command(name, server, folder), stdout=full, stderr=subprocess.PIPE, env=PLAIN, cwd=ROOT, check=False
        )
    message = ended.stderr.decode()
    assert ended.returncode == 1 and re.fullmatch(r"[\w.]+: (standard output: )?No space left on device\n", message)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_terminal_of_another_encoding(encoding: str, server: FakeServer) -> None:
    requested = ["Why?", "--url", server.url.removesuffix("/v1"), "--candidates"]
    environment = {**PLAIN, "PYTHONIOENCODING": encoding}
    run = [sys.executable, "-m", "led_sglang.trace", *requested]
    ended = subprocess.run(run, capture_output=True, env=environment, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert str(TOKEN["text"]).encode(encoding, "backslashreplace") in ended.stdout


LOCALES = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C"},
    "plain C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_a_question_is_utf_8_whatever_the_terminal(locale: str, server: FakeServer) -> None:
    requested = ["What is ½ of é?".encode(), b"--url", server.url.removesuffix("/v1").encode()]
    server.requested.clear()
    run = [sys.executable.encode(), b"-m", b"led_sglang.trace", *requested]
    ended = subprocess.run(run, capture_output=True, env={**PLAIN, **LOCALES[locale]}, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert server.requested[0]["messages"][0]["content"] == "What is ½ of é?"


@pytest.mark.parametrize("locale", LOCALES)
def test_a_question_that_is_not_utf_8(locale: str, server: FakeServer) -> None:
    server.requested.clear()
    run = [sys.executable.encode(), b"-m", b"led_sglang.trace", b"caf\xe9", b"--url", server.url.encode()]
    ended = subprocess.run(run, capture_output=True, env={**PLAIN, **LOCALES[locale]}, cwd=ROOT, check=False)
    assert ended.returncode == 2 and not server.requested
    assert b"argument question: byte 4, 0xe9, of b'caf\\xe9' is not UTF-8" in ended.stderr


def test_a_folder_whose_name_is_not_utf_8(server: FakeServer, folder: Path) -> None:
    (renamed := Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))).mkdir()
    (renamed / "run").symlink_to(folder / "run")
    requested = ["report", str(renamed / "run"), "--out", str(renamed / "docs"), "--resamples", "10"]
    run = [sys.executable, "-m", "led_sglang.evals", *requested]
    ended = subprocess.run(run, capture_output=True, env=PLAIN, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "caf\\udce9" in (renamed / "docs" / "report.md").read_text()


def test_an_interrupt(tmp_path: Path) -> None:
    with FakeServer(delay_s=60) as slow:
        listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a background job ignores
        run = [sys.executable, "-m", "led_sglang.trace", "Why?", "--url", slow.url.removesuffix("/v1")]
        with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=PLAIN, preexec_fn=listens) as it:
            while not slow.requested:
                assert it.poll() is None
                time.sleep(0.02)
            it.send_signal(signal.SIGINT)
            _, message = it.communicate(timeout=60)
        slow.server.force_exit = True
    assert (it.returncode, message.decode()) == (130, "led_sglang.trace: stopped\n")


@pytest.mark.parametrize(
    "events",
    [({"error": "too long"},), ({"i": 0, "error": "too long"},), ({},), ({"i": "x"},), ([],), (), ({"i": 0, "id": 1},)],
)
def test_events_of_something_else(events: tuple[dict[str, object], ...], capsys: pytest.CaptureFixture[str]) -> None:
    from led_sglang import trace

    with FakeServer(events=events) as server:
        status = trace.main(["Why?", "--url", server.url.removesuffix("/v1")])
    message = capsys.readouterr().err
    assert status == (1 if events else 0)
    assert not events or "too long" in message or "is it an LED server?" in message


def test_kinds_of_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        raise error

    assert guarded("it", lambda: None) == 0 and guarded("it", lambda: 3) == 3
    assert guarded("it", lambda: fails(OSError(2, "No such file", "x")), kept=lambda message: f"({message})") == 1
    assert guarded("it", lambda: fails(ModuleNotFoundError("No module named 'm'")), install="pip install m") == 1
    assert guarded("it", lambda: fails(KeyboardInterrupt())) == 130
    assert guarded("it", lambda: fails(BrokenPipeError())) == 141
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        guarded("it", lambda: fails(ZeroDivisionError()))
    shown = capsys.readouterr().err
    assert shown == "it: x: No such file\n(x: No such file)\nit: No module named 'm': pip install m\nit: stopped\n"


@pytest.mark.parametrize(
    ("option", "value", "legal"),
    [
        *(("--temperature", value, "a number in [0, inf)") for value in ("nan", "inf", "-1", "-inf", "1e999", "warm")),
        *(("--max-tokens", value, "an integer in [1, inf)") for value in ("0", "-1", "1.5", "nan")),
        *(("--depth", value, "an integer in [1, inf)") for value in ("0", "x")),
        *(("--top-k", value, "an integer in [1, inf)") for value in ("0", "x")),
        *(("--seed", value, "an integer in [0, 4611686018427387903]") for value in ("-1", str(1 << 62))),
        *(("--samples", value, "an integer in [1, 8]") for value in ("0", "9", "9" * 400)),
    ],
)
def test_numbers_of_a_trace(option: str, value: str, legal: str, capsys: pytest.CaptureFixture[str]) -> None:
    from led_sglang import trace

    with pytest.raises(SystemExit, match="2"):
        trace.main(["Why?", f"{option}={value}"])
    assert f"argument {option}: {value!r} is not {legal}" in capsys.readouterr().err
