"""Every command x every way in which a file can be wrong, read or written: one message, no traceback, nothing asked."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot
from benchmarks.soak import __main__ as soak
from led_sglang import analysis, patches, trace
from led_sglang.compat.sources import installed_release
from led_sglang.embedded import draft, tokenizer
from led_sglang.evals import __main__ as evals
from led_sglang.evals.report import compose
from tests.unit.evals.fake_server import FakeServer
from training import train

QUESTIONS = "".join(json.dumps({"id": f"é{i}", "problem": f"Say {i}", "answer": str(i)}, ensure_ascii=False) + "\n"
                    for i in range(3))  # fmt: skip
ANALYSIS = {
    "name": "modèle", "temperature": 0.6, "positions": 1, "ks": [1], "exploration_rate": 0.1,
    "layers": [{"layer": 1, "entropy": 0.5, "coverage": {"1": 0.5}}],
}  # fmt: skip
UNREADABLE = "/proc/self/mem"  # reading it is an error for everybody, root included


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    """Commands are run up to what is long: models, figures and servers of their own have tests elsewhere."""

    def loaded(*_: Any, **__: Any) -> Any:
        raise analysis.AnalysisError("the work began")

    monkeypatch.setattr(analysis, "load", loaded)
    monkeypatch.setattr(train, "train", loaded)
    monkeypatch.setattr(soak, "Server", loaded)
    monkeypatch.setattr(compose, "all_figures", lambda experiment, analyses: {})
    server.seen.clear()


def document(value: dict[str, Any]) -> str:
    """JSON of several lines, not all of them ASCII."""
    return json.dumps({"note": "é", **value}, indent=1, ensure_ascii=False) + "\n"


def ask(folder: Path, url: str, *more: str) -> list[str]:
    requested = ["run", "--task", "gsm8k", "--methods", "cot", "--samples", "1", "--quiet", "--data", str(folder)]
    return [*requested, "--base-url", url, "--out", str(folder / "run"), *more]


def finished_run(folder: Path, url: str) -> Path:
    """A run of its questions whose three files each hold what is not ASCII."""
    (folder / "gsm8k.jsonl").write_text(QUESTIONS)
    assert evals.main(ask(folder, url)) == 0
    settings = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(document(settings))
    return folder / "run"


def questions(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    (folder / "gsm8k.jsonl").write_text(QUESTIONS)
    return folder / "gsm8k.jsonl", partial(evals.main, ask(folder, url))


def reproduced(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    (folder / "gsm8k.jsonl").write_text(QUESTIONS)
    requested = ["reproduce", "--task", "gsm8k", "--stages", "temperatures", "--few", "1", "--data", str(folder)]
    where = ["--base-url", url, "--runs", str(folder / "runs"), "--out", str(folder / "docs")]
    return folder / "gsm8k.jsonl", partial(evals.main, [*requested, *where])


def of_run(name: str, *command: str) -> Callable[[Path, str], tuple[Path, Callable[[], int]]]:
    """One of the run's files, read by `command` (report, compact or run --resume)."""

    def made(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
        run = finished_run(folder, url)
        if name == "counts.jsonl":
            assert evals.main(["compact", str(run)]) == 0
            lines = map(json.loads, (run / name).read_text().splitlines())
            (run / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        more = {"report": [str(run), "--out", str(folder / "docs")], "compact": [str(run)]}
        requested = ask(folder, url, "--resume") if command == ("run",) else [*command, *more[command[0]]]
        return run / name, partial(evals.main, requested)

    return made


def analysed(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    run = finished_run(folder, url)
    file = folder / "analysis.json"
    file.write_text(document(ANALYSIS))
    return file, partial(evals.main, ["report", str(run), "--out", str(folder / "docs"), "--analysis", str(file)])


def prompts(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "é?"}\nWhy?\n{"question": "é!"}\n')
    return file, partial(analysis.main, ["a model", "--prompts", str(file)])


def manifest(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    release = installed_release()
    file = folder / f"sglang-{release.version}.json"
    file.write_text(document(json.loads((patches.manifests_dir() / file.name).read_text())))
    return file, partial(patches.main, ["check", "--patches", str(folder)])


def measured(folder: Path, url: str) -> tuple[Path, Callable[[], int]]:
    file = folder / "gpu.jsonl"
    about = {"part": "ops", "kind": "time", "run": "naive", "explored_rows": 1, "explore_rate": 0.1, "device": "é"}
    lines = [{**about, "rows": n, "ms": 2.0 * n} for n in (1, 8, 64)]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file, partial(plot.main, ["--results", str(folder), "--out", str(folder / "pictures")])


@dataclass(frozen=True)
class Reader:
    make: Callable[[Path, str], tuple[Path, Callable[[], int]]]
    is_document: bool = False
    right: tuple[str, ...] = ()  # damages that are none for this file
    result: int = 0  # of the command when the file is right
    unnamed: tuple[str, ...] = ()  # damages whose message names the folder


READERS = {
    "run --data": Reader(questions),
    "reproduce --data": Reader(reproduced),
    "report samples": Reader(of_run("samples.jsonl", "report"), unnamed=("missing", "empty")),
    "report run.json": Reader(of_run("run.json", "report"), is_document=True, unnamed=("missing",)),
    "report counts": Reader(of_run("counts.jsonl", "report"), unnamed=("missing",)),
    "report --analysis": Reader(analysed, is_document=True),
    "compact samples": Reader(of_run("samples.jsonl", "compact"), right=("missing", "empty")),
    "compact run.json": Reader(of_run("run.json", "compact"), is_document=True, unnamed=("missing",)),
    "compact counts": Reader(of_run("counts.jsonl", "compact"), right=("missing",)),
    "resume samples": Reader(of_run("samples.jsonl", "run"), right=("missing", "empty")),
    "resume run.json": Reader(of_run("run.json", "run"), is_document=True, unnamed=("missing",)),
    "resume counts": Reader(of_run("counts.jsonl", "run"), right=("missing",)),
    "analysis --prompts": Reader(prompts, right=("list",), result=1),
    "patches check": Reader(manifest, is_document=True, unnamed=("missing",)),
    "plot": Reader(measured, unnamed=("missing", "empty")),
}
DAMAGES = (
    "missing", "directory", "unreadable", "latin-1", "utf-16", "utf-16-le", "utf-32", "bom", "empty", "half a row",
    "list", "binary",
)  # fmt: skip
LINES = ("latin-1", "utf-16", "utf-16-le", "utf-32", "half a row", "list", "binary")  # whose line is named


def damaged(how: str, good: str, is_document: bool) -> bytes:
    first, *others = good.splitlines(keepends=True)
    row = {"half a row": '{"half": \n', "list": "[1, 2]\n"}.get(how)
    if row is not None:
        return (row if is_document else "".join([first, row, *others])).encode()
    fixed = {"empty": b"", "binary": bytes(range(256)) * 4, "bom": b"\xef\xbb\xbf" + good.encode()}
    return fixed[how] if how in fixed else good.encode(how)


def put(file: Path, how: str, is_document: bool) -> None:
    good = file.read_text() if file.exists() else "\n"
    file.unlink(missing_ok=True)
    if how == "directory":
        file.mkdir()
    elif how == "unreadable":
        file.symlink_to(UNREADABLE)
    elif how != "missing":
        file.write_bytes(damaged(how, good, is_document))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_wrong_file_is_reported(
    name: str, how: str, tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = READERS[name]
    file, command = reader.make(tmp_path, server.url)
    put(file, how, reader.is_document)
    server.seen.clear()
    capsys.readouterr()
    status, shown = command(), capsys.readouterr().err
    if how == "bom" or how in reader.right:
        assert status == reader.result and (not status or "the work began" in shown), shown
        return
    assert status == 1 and not server.seen, shown
    assert (str(file.parent) if how in reader.unnamed else str(file)) in shown and "the work began" not in shown
    if how in LINES and (how != "list" or not reader.is_document):
        line = "2" if how in ("half a row", "list") and not reader.is_document else r"\d+"
        assert re.search(rf"{re.escape(str(file))}:{line}: ", shown), shown


def test_a_mark_changes_nothing(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "prompts").write_bytes(mark + '{"prompt": "é?"}\r\nWhy?\n'.encode())
        assert analysis.read_prompts(tmp_path / "prompts") == ["é?", "Why?"]


@dataclass(frozen=True)
class Writer:
    arguments: Callable[[Path, Path, str], list[str]]  # (folder, output, url)
    main: Callable[[list[str]], int]
    is_folder: bool = False


def command_of(module: Any, argv: list[str]) -> int:
    """Of a command that reads sys.argv."""
    from led_sglang.cli.endings import guarded

    sys.argv[1:] = argv
    return guarded("command", module.command)


def with_run(folder: Path, url: str) -> str:
    return str(finished_run(folder, url))


WRITERS = {
    "run --out": Writer(
        lambda folder, out, url: [*questions_only(folder, url), "--out", str(out)], evals.main, is_folder=True
    ),
    "report --out": Writer(
        lambda folder, out, url: ["report", with_run(folder, url), "--out", str(out)], evals.main, is_folder=True
    ),
    "reproduce --out": Writer(
        lambda folder, out, url: ["reproduce", "--base-url", url, "--runs", str(folder / "r"), "--out", str(out)],
        evals.main,
        is_folder=True,
    ),
    "reproduce --runs": Writer(
        lambda folder, out, url: ["reproduce", "--base-url", url, "--runs", str(out), "--out", str(folder / "d")],
        evals.main,
        is_folder=True,
    ),
    "analysis --out": Writer(
        lambda folder, out, url: ["m", "--prompts", str(prompts(folder, url)[0]), "--out", str(out)], analysis.main
    ),
    "trace --html": Writer(
        lambda folder, out, url: ["Why?", "--url", url.removesuffix("/v1"), "--html", str(out)], trace.main
    ),
    "patches record": Writer(lambda folder, out, url: ["record", "--patches", str(out)], patches.main, is_folder=True),
    "plot --out": Writer(
        lambda folder, out, url: ["--results", str(measured(folder, url)[0].parent), "--out", str(out)],
        plot.main,
        is_folder=True,
    ),
    "soak --log": Writer(lambda folder, out, url: ["--log", str(out)], partial(command_of, soak)),
    "draft --out": Writer(lambda folder, out, url: ["--out", str(out)], draft.main, is_folder=True),
    "tokenizer --out": Writer(lambda folder, out, url: ["--out", str(out)], tokenizer.main, is_folder=True),
    "train --out": Writer(lambda folder, out, url: ["--out", str(out)], train.main, is_folder=True),
}


def questions_only(folder: Path, url: str) -> list[str]:
    (folder / "gsm8k.jsonl").write_text(QUESTIONS)
    return ask(folder, url)


def place(folder: Path, how: str, is_folder: bool) -> Path:
    """Where nothing can be written."""
    (folder / "a file").write_text("")
    (folder / "a folder").mkdir()
    wrong = folder / ("a file" if is_folder else "a folder")
    closed = Path("/proc/nowhere")  # for root too
    return {"below a file": folder / "a file" / "out", "wrong kind": wrong, "full": Path("/dev/full")}.get(how, closed)


@pytest.mark.parametrize("how", ["below a file", "wrong kind", "full", "closed"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_to_is_reported_before_the_work(
    name: str, how: str, tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    writer = WRITERS[name]
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    out = place(tmp_path, how, writer.is_folder)
    arguments = writer.arguments(tmp_path, out, server.url)
    server.seen.clear()
    capsys.readouterr()
    assert writer.main(arguments) == 1
    shown = capsys.readouterr()
    assert (str(out) in shown.err or str(out.parent) in shown.err) and not shown.out
    assert not server.seen and "the work began" not in shown.err


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_of_somebody_else(
    name: str, tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    arguments = WRITERS[name].arguments(tmp_path, closed / "out", server.url)
    server.seen.clear()
    assert WRITERS[name].main(arguments) == 1 and not server.seen
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["analysis --out", "trace --html"])
def test_a_file_that_is_there_is_not_touched_before_the_end(name: str, tmp_path: Path, server: FakeServer) -> None:
    out = tmp_path / "new folder" / "out"
    arguments = WRITERS[name].arguments(tmp_path, out, server.url)
    assert WRITERS[name].main(arguments) == (1 if name == "analysis --out" else 0)
    assert out.exists() == (name == "trace --html")
    out.write_text("before")
    server.events, events = ({"i": 0, "error": "it ends here"},), server.events
    assert WRITERS[name].main(arguments) == 1
    server.events = events
    assert out.read_text() == "before"


@pytest.mark.parametrize("how", ["missing", "directory", "empty", "binary", "named otherwise"])
def test_a_wheel_that_is_none(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / ("other.whl" if how == "named otherwise" else "sglang-9.9.9-py3-none-any.whl")
    put(wheel, how if how in DAMAGES else "empty", True)
    assert patches.main(["check", "--wheel", str(wheel)]) == 1
    assert wheel.name in capsys.readouterr().err
