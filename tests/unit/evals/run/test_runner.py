"""Whole runs against a fake server: interleaving, checks, death half-way, resume, Ctrl-C."""

import contextlib
import errno
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from led_sglang.evals.__main__ import main
from led_sglang.evals.grade.graders import Verdict
from led_sglang.evals.grade.judge import Judges
from led_sglang.evals.records.results import read_cells
from led_sglang.evals.records.store import CellKey, Sample, Store, read_lines
from led_sglang.evals.run import client, outcome
from led_sglang.serving.ports import HeldPort
from tests.unit.evals.fake_server import FakeServer, applied_to


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(client, "GONE_LIMIT_S", 0.01)
    monkeypatch.setattr(client, "BUSY_LIMIT_S", 0.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "problem": f"Say {i}", "expected_answer": str(i)} for i in range(4)]
    for task in ("gsm8k", "aime2024"):
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


Start = Callable[..., int]
BLANK = Sample("gsm8k", "cot", 0.6, "q0", 0, 1, "right", "1", "", 10, 5, "stop", 0.5)


@pytest.fixture
def start(data: Path) -> Start:
    def run(url: str, *arguments: str, task: str = "gsm8k", methods: str = "cot,led:depth=4", samples: int = 3) -> int:
        fixed = ["--quiet", "--data", str(data), "--base-url", url, "--out", str(data / "run")]
        requested = ["--task", task, "--methods", methods, "--samples", str(samples)]
        return main(["run", *requested, *fixed, *arguments])

    return run


def stored(data: Path) -> list[Sample]:
    return list(read_lines(data / "run" / "samples.jsonl"))


def echo(body: dict[str, Any]) -> str:
    """Right for even numbers, wrong for 1, thinking for ever on 3."""
    number = int(re.findall(r"Say (\d+)", body["messages"][0]["content"])[0])
    return {1: "thought</think>It is 9.", 3: "thought</think>Who knows?"}.get(number, f"thought</think>It is {number}.")


def test_a_whole_run(data: Path, start: Start) -> None:
    with FakeServer(echo) as server:
        assert start(server.url, "--temperature", "0.1,0.6", "--concurrency", "2") == 0
    samples = stored(data)
    assert len(samples) == len({(s.cell, s.question, s.sample) for s in samples}) == 4 * 3 * 2 * 2
    assert {s.question: s.outcome for s in samples} == {"q0": "right", "q1": "wrong", "q2": "right", "q3": "no_answer"}
    assert {s.method: s.led["method"] for s in samples} == {"cot": "none", "led:depth=4": "led"}
    assert all(s.tokens == 7 and s.finish == "stop" and s.text for s in samples)
    bodies = server.bodies[2:]  # after one token of each method
    assert all(b["return_meta_info"] and b["max_tokens"] == 32768 and b["top_k"] == 20 for b in bodies)
    assert [b["custom_params"]["led"] is False for b in bodies[:4]].count(True) == 2, "methods do not take turns"
    seeds = {(s.question, s.sample): s.seed for s in samples}
    assert len(set(seeds.values())) == 12 and all(seeds[s.question, s.sample] == s.seed for s in samples)
    settings = json.loads((data / "run" / "run.json").read_text())
    assert settings["applied"]["led:depth=4"]["depth"] == 4 and settings["server"] == {"sglang": "0.0.1"}
    assert settings["sessions"][0]["wall_s"] > 0


def test_memory_does_not_grow_with_the_samples(data: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "thinking" * 500 + "</think>It is 0."

    async def ask(self: client.Client, requested: client.Query) -> client.Answer:
        return client.Answer(text, "", "stop", 7, 5, 0.1, {"method": "none"})

    async def find_model(self: client.Client) -> str:
        return "instant"

    monkeypatch.setattr(client.Client, "ask", ask)
    monkeypatch.setattr(client.Client, "find_model", find_model)

    def peak_bytes(samples: int) -> int:
        out = data / f"run-{samples}"
        tracemalloc.start()
        try:
            assert start("http://127.0.0.1:1/v1", "--out", str(out), methods="cot", samples=samples) == 0
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (out / "samples.jsonl").stat().st_size > 4 * samples * len(text)
        return peak

    peak_bytes(10)  # what is imported late
    growth = peak_bytes(2500) - peak_bytes(500)
    assert growth < 1 << 20, f"{growth} bytes more for 8,000 samples more, which would be 4 MB without their texts"


def test_bars_show_the_accuracy_while_it_runs(data: Path) -> None:
    with FakeServer(echo, delay_s=0.05) as server:
        command = [sys.executable, "-m", "led_sglang.evals", "run", "--task", "gsm8k", "--methods", "cot,led:depth=4"]
        command += ["--samples", "20", "--concurrency", "2", "--data", str(data), "--base-url", server.url]
        shown = in_a_terminal([*command, "--out", str(data / "run")])
    for method in ("cot", "led:depth=4"):
        bars = re.findall(rf"gsm8k {method} t=0\.6 .*? (\d+)/80 pass@1 +([\d.]+)%, no answer +([\d.]+)%", shown)
        assert bars[-1] == ("80", "50.0", "25.0")
        assert any(0 < int(done) < 80 for done, _, _ in bars), "nothing was shown before the end"


def in_a_terminal(command: list[str]) -> str:
    """What a command writes to a terminal 160 columns wide, without colours."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while chunk := os.read(ours, 1 << 16):
                chunks.append(chunk)
    os.close(ours)
    text = b"".join(chunks).decode()
    assert process.returncode == 0, text
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_mathematics_goes_through_the_judges(data: Path, start: Start) -> None:
    with FakeServer(lambda body: "t</think>$\\boxed{\\frac{4}{2}}$") as server:
        assert start(server.url, task="aime2024", methods="cot", samples=1) == 0
    assert {s.question: s.outcome for s in stored(data)} == {"q0": "wrong", "q1": "wrong", "q2": "right", "q3": "wrong"}


def test_a_judge_that_hangs_is_counted(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    tower = "\\boxed{9^{9^{9^{9}}}-9^{9^{9^{9}}}+(1+x)^{99999999}}"
    with FakeServer(lambda body: f"t</think>{tower}") as server:
        arguments = ("--judge-timeout-s", "0.05", "--limit", "2")
        assert start(server.url, *arguments, task="aime2024", methods="cot", samples=1) == 1
    assert {s.outcome for s in stored(data)} <= {"judge_timeout", "judge_error"}
    message = capsys.readouterr().err
    assert "2 of 2 answers got no verdict" in message and "  2 x judge_timeout: no verdict in 0.05 s" in message


def test_one_answer_that_no_judge_understands_is_reported_and_counted(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def grade(self: Judges, grader: str, text: str, gold: str) -> Verdict:
        return Verdict("judge_timeout", detail="no verdict in 20 s") if gold == "2" else Verdict("right")

    monkeypatch.setattr(Judges, "grade", grade)
    with FakeServer(echo) as server:
        assert start(server.url, task="aime2024", methods="cot", samples=1) == 0
    message = "1 of 4 answers got no verdict; they count as not right:\n  1 x judge_timeout: no verdict in 20 s\n"
    assert message in capsys.readouterr().err


def test_a_missing_judge_is_reported_before_the_first_request(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with FakeServer(echo) as server:
        assert start(server.url, task="aime2024") == 1
        assert not server.seen
    assert "math-verify, which is missing: pip install" in capsys.readouterr().err


def test_death_half_way_keeps_what_is_done_and_resumes(
    data: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(echo, die_after=10) as server:
        assert start(server.url, "--concurrency", "2") == 1
    message = capsys.readouterr().err
    assert "stopped answering" in message and "--resume" in message
    before = stored(data)
    assert 4 <= len(before) <= 8
    with FakeServer(echo) as server:
        assert start(server.url) == 1, "an unfinished run is not written over"
        assert "already holds a run" in capsys.readouterr().err
        assert start(server.url, "--resume") == 0
        num_asked = len(server.bodies)
    after = stored(data)
    assert after[: len(before)] == before
    assert len(after) == len({(s.cell, s.question, s.sample) for s in after}) == 24
    assert num_asked == 24 - len(before) + 2 + 2  # and one token of each method, twice
    assert len(json.loads((data / "run" / "run.json").read_text())["sessions"]) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(status: int, data: Path, start: Start) -> None:
    """Each request is turned away four times, which would be the end of a server that is gone."""
    times = Counter[int]()

    def turned_away(body: dict[str, Any]) -> int:
        times[body["seed"]] += 1
        return status if body["max_tokens"] > 1 and times[body["seed"]] <= 4 else 200

    with FakeServer(echo, status=turned_away) as server:
        assert start(server.url, methods="cot", samples=2) == 0
    assert [s.outcome for s in stored(data)].count("right") == 4 and len(stored(data)) == 8


def test_an_error_after_a_long_queue_is_retried(data: Path, start: Start) -> None:
    answers = iter([503, 503, 503, 503, 500])

    def status(body: dict[str, Any]) -> int:
        return next(answers, 200) if body["max_tokens"] > 1 else 200

    with FakeServer(echo, status=status) as server:
        assert start(server.url, "--concurrency", "1", "--judges", "1", methods="cot", samples=1) == 0
    assert len(stored(data)) == 4


def test_a_server_that_stays_busy(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo, status=lambda body: 503 if "Say 3" in str(body) else 200) as server:
        assert start(server.url, "--concurrency", "1", methods="cot", samples=1) == 1
    message = capsys.readouterr().err
    assert "still has no room for a request" in message and "no: 503" in message and "--resume" in message
    assert {s.question for s in stored(data)} == {"q0", "q1", "q2"}


def test_a_full_disk_keeps_what_is_done_and_resumes(data: Path, start: Start) -> None:
    with FakeServer(echo) as server:
        command = [sys.executable, "-m", "led_sglang.evals", "run", "--task", "gsm8k", "--methods", "cot", "--quiet"]
        command += ["--samples", "20", "--concurrency", "2", "--data", str(data), "--base-url", server.url]
        command += ["--out", str(data / "run")]
        limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))  # bytes of one file
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=limits, check=False)
        assert ended.returncode == 1
        assert "File too large" in ended.stderr and "finished samples are kept" in ended.stderr
        assert "Traceback" not in ended.stderr
        num_done = len(stored(data))
        assert 10 <= num_done < 80
        assert start(server.url, "--resume", methods="cot", samples=20) == 0
    assert len({(s.question, s.sample) for s in stored(data)}) == len(stored(data)) == 80


def test_a_write_that_fails_once_ends_the_run(
    data: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = Store.append

    def fail_once(self: Store, sample: Sample) -> None:
        if len(stored(data)) == 5:
            monkeypatch.setattr(Store, "append", append)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        append(self, sample)

    monkeypatch.setattr(Store, "append", fail_once)
    with FakeServer(echo) as server:
        assert start(server.url, "--concurrency", "1") == 1
        assert "Disk quota exceeded" in capsys.readouterr().err
        assert start(server.url, "--resume") == 0
    assert len(stored(data)) == 24


def test_a_folder_that_cannot_be_made(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "run").write_text("a file")
    with FakeServer(echo) as server:
        assert start(server.url) == 1
        assert not server.seen, "said before the first request"
    assert f"{data / 'run'} is a file, not a folder" in capsys.readouterr().err


def test_a_line_cut_short_by_a_kill_is_asked_again(data: Path, start: Start) -> None:
    with FakeServer(echo) as server:
        assert start(server.url) == 0
        path = data / "run" / "samples.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert len(stored(data)) == 23
        assert start(server.url, "--resume") == 0
    assert len(stored(data)) == 24


def test_a_compacted_run_goes_on(data: Path, start: Start) -> None:
    """As in another session that has the repository only: more samples and methods, none asked twice."""
    with FakeServer(echo) as server:
        assert start(server.url, samples=2) == 0
        whole = read_cells([data / "run"])
        assert main(["compact", str(data / "run")]) == 0
        assert start(server.url, "--resume", samples=2) == 0
        assert not stored(data) and read_cells([data / "run"]) == whole
        assert start(server.url, "--resume", methods="cot,led", samples=3) == 0
    assert len(stored(data)) == 4 + 3 * 4, "one more of cot, all of led"
    assert main(["compact", str(data / "run")]) == 0
    cells = read_cells([data / "run"])
    assert {key.method: cell.num_samples for key, cell in cells.items()} == {"cot": 12, "led": 12, "led:depth=4": 8}
    assert cells[CellKey("gsm8k", "cot", 0.6)].share("right") == 0.5


def test_more_samples_may_be_added_but_nothing_changed(
    data: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(echo) as server:
        assert start(server.url, samples=1) == 0
        assert start(server.url, "--resume", methods="cot,led:depth=4,led", samples=2) == 0
        assert len(stored(data)) == 4 * 2 * 3
        assert start(server.url, "--resume", "--seed", "5") == 1
        assert "seed was 0" in capsys.readouterr().err
        assert start(server.url, "--resume", "--limit", "2") == 1
        assert "questions of gsm8k are not those" in capsys.readouterr().err
        assert start(server.url, "--resume", "--prompts", "released") == 1
        assert "--prompts was ours" in capsys.readouterr().err


def test_released_prompts_are_sent_and_recorded(data: Path, start: Start) -> None:
    with FakeServer(echo) as server:
        assert start(server.url, "--prompts", "released", samples=1) == 0
    prompts = {body["messages"][0]["content"] for body in server.bodies}
    assert all(prompt.startswith("Please reason") and re.search(r"\nSay \d$", prompt) for prompt in prompts)
    assert json.loads((data / "run" / "run.json").read_text())["prompts"] == "released"
    assert main(["report", str(data / "run"), "--out", str(data / "report")]) == 0
    assert "; prompts released." in (data / "report" / "report.md").read_text()


def test_a_model_with_a_smaller_context_gets_fewer_tokens(
    data: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def models(self: FakeServer, request: Any) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "XiaomiMiMo/MiMo-7B-RL", "object": "model"}]})

    monkeypatch.setattr(FakeServer, "models", models)
    with FakeServer(echo) as server:
        assert start(server.url, methods="cot", samples=1) == 0
    assert {body["max_tokens"] for body in server.bodies[1:]} == {28 * 1024}
    fixed = json.loads((data / "run" / "run.json").read_text())["fixed"]
    assert fixed["sampling of gsm8k"]["max_tokens"] == 28 * 1024


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda led: None, "no meta_info.led_params"),
        (lambda led: {"method": "none"}, "led:depth=4: asked for method = 'led', applied was 'none'"),
        (lambda led: {**applied_to(led), "depth": 8} if led else applied_to(led), "asked for depth = 4, applied was 8"),
    ],
)
def test_a_server_that_ignores_the_parameters(
    apply: Any, message: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(echo, apply=apply) as server:
        assert start(server.url) == 1
    assert message in capsys.readouterr().err


def test_a_server_that_changes_its_defaults_in_the_run(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def apply(led: Any) -> dict[str, Any]:
        calls.append(led)
        return {**applied_to(led), "top_k": 8 if len(calls) < 6 else 3}

    with FakeServer(echo, apply=apply) as server:
        assert start(server.url, methods="led:depth=4") == 1
    assert "at the start of this run" in capsys.readouterr().err


def test_a_server_that_is_down(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with HeldPort() as port:
        assert start(f"http://127.0.0.1:{port.number}/v1") == 1
    assert f"no answer from http://127.0.0.1:{port.number}/v1/models" in capsys.readouterr().err
    assert not (data / "run" / "samples.jsonl").exists()


def test_a_method_the_server_refuses(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo, status=lambda body: 400 if body["custom_params"]["led"] else 200) as server:
        assert start(server.url) == 1
    assert "does not take method led:depth=4: HTTP 400" in capsys.readouterr().err


def test_a_question_the_server_refuses_is_counted(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    def status(body: dict[str, Any]) -> int:
        return 400 if "Say 2" in body["messages"][0]["content"] else 200

    with FakeServer(echo, status=status) as server:
        assert start(server.url) == 1
        message = capsys.readouterr().err
        assert "6 of 24 requests got no answer; they count as not right:\n  6 x refused: HTTP 400: no: 400\n" in message
        assert "--resume" not in message, "nothing is left to be asked"
        assert start(server.url, "--resume") == 1, "they have no answer still"
        assert "6 of 24 requests got no answer" in capsys.readouterr().err
    assert {s.question: s.outcome for s in stored(data)}["q2"] == "refused"


def test_all_refused_says_why_by_what_was_said_most(
    data: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sentences of which one has another number in it every time."""
    count = Counter[str]()

    def said(body: dict[str, Any]) -> str:
        name = "rare" if "Say 3" in body["messages"][0]["content"] else "often"
        count[name] += 1
        return "never here" if name == "rare" else f"{1000 + count[name]} tokens are more than the context's 512"

    with FakeServer(echo, status=lambda body: 422 if body["max_tokens"] > 1 else 200, says=said) as server:
        assert start(server.url, "--concurrency", "1", "--judges", "1") == 1
    message = capsys.readouterr().err
    assert "24 of 24 requests got no answer" in message
    lines = [line.strip() for line in message.splitlines() if " x refused: " in line]
    assert lines == [
        "18 x refused: HTTP 422: 1001 tokens are more than the context's 512",
        "6 x refused: HTTP 422: never here",
    ]


def test_more_reasons_than_anybody_reads(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = outcome.Reasons()
    for number, word in enumerate(("a", "b", "c", "d", "e", "f", "g")):
        for _ in range(number + 1):
            reasons.add(replace(BLANK, outcome="refused", detail=word))
    reasons.add(BLANK)
    assert reasons.lines()[0] == "  7 x refused: g" and reasons.lines()[-1] == "  and 2 other reasons"


@pytest.mark.parametrize(("status", "said"), [(401, "wants an API key"), (403, "wants an API key"), (404, "not there")])
def test_a_server_that_changes_its_mind_ends_the_run(
    status: int, said: str, data: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(echo, status=lambda body: status if body["max_tokens"] > 1 else 200) as server:
        assert start(server.url) == 1
    message = capsys.readouterr().err
    assert said in message and f"HTTP {status}: no: {status}" in message and "no server" not in message
    assert not stored(data)


@pytest.mark.parametrize("reply", [[], {}, {"choices": []}, {"choices": [5]}, {"choices": [{"message": None}]}])
def test_an_answer_that_is_no_completion(reply: Any, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo, reply=reply) as server:
        assert start(server.url) == 1
    assert "answered with" in capsys.readouterr().err


def test_a_server_without_versions_is_reported(
    data: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def info(self: FakeServer, request: Any) -> Any:
        return JSONResponse({"message": "not now"}, 500)

    monkeypatch.setattr(FakeServer, "info", info)
    with FakeServer(echo) as server:
        assert start(server.url) == 0
    assert "without its server's versions: " in (message := capsys.readouterr().err) and "not now" in message
    assert json.loads((data / "run" / "run.json").read_text())["server"] == {}


def test_an_answer_that_comes_too_late_is_counted(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda body: "a</think>1" if body["max_tokens"] == 1 else time.sleep(0.6) or "a") as server:
        assert start(server.url, "--timeout-s", "0.4", "--limit", "1", methods="cot", samples=1) == 1
    assert [s.outcome for s in stored(data)] == ["timed_out"]
    assert "1 of 1 requests got no answer" in (message := capsys.readouterr().err)
    assert "  1 x timed_out: no answer in 0.4 s" in message


@pytest.mark.parametrize(
    ("option", "value", "legal"),
    [
        ("--temperature", "warm", "a number in [0, 100]"),
        ("--temperature", "-1", "a number in [0, 100]"),
        ("--temperature", "0.6,-1", "a number in [0, 100]"),
        ("--concurrency", "0", "an integer in [1, inf)"),
        ("--limit", "0", "an integer in [1, inf)"),
        ("--max-tokens", "0", "an integer in [1, inf)"),
        ("--top-p", "0", "a number in (0, 1]"),
        ("--timeout-s", "0", "a number in (0, inf)"),
        ("--seed", "-1", "an integer in [0, inf)"),
    ],
)
def test_bad_arguments(option: str, value: str, legal: str, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        start("http://127.0.0.1:1/v1", option, value)
    assert f"argument {option}: '{value.split(',')[-1]}' is not {legal}" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done(data: Path, start: Start) -> None:
    out = data / "run"
    with FakeServer(echo, delay_s=0.05) as server:
        command = [sys.executable, "-m", "led_sglang.evals", "run", "--task", "gsm8k", "--methods", "cot,led:depth=4"]
        command += ["--samples", "500", "--concurrency", "2", "--data", str(data), "--base-url", server.url]
        # What a shell starts in the background ignores the signal, and so would what we start.
        listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command += ["--out", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listens)
        deadline = time.monotonic() + 240
        while not (out / "samples.jsonl").exists() or len(stored(data)) < 5:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=120)
        assert process.returncode == 130 and "go on with --resume" in message, message
        num_done = len(stored(data))
        assert num_done >= 5
        assert (out / "samples.jsonl").read_bytes().endswith(b"\n")
        assert start(server.url, "--resume", "--max-tokens", "32768", samples=2) == 0
    assert len(stored(data)) >= num_done


def test_two_runs_do_not_share_a_folder(data: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    (data / "run").mkdir()
    with (data / "run" / "samples.jsonl").open("ab") as held, FakeServer(echo) as server:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert start(server.url) == 1
    assert "another run is writing" in capsys.readouterr().err
