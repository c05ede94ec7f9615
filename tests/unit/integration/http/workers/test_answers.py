"""What tokenizer workers count is one sum, whichever of them is asked."""

from pathlib import Path

import pytest

from led_sglang.config.server import ENV_ANSWERS
from led_sglang.integration.http.workers.answers import Answers
from led_sglang.integration.http.workers.start import for_workers
from led_sglang.integration.topology_support import ENV_APP, WORKER_APP


def test_one_process_needs_no_file() -> None:
    answers = Answers()
    answers.add_request("led")
    answers.add_report_failure()
    assert answers.to_dict() == {"report_failures": 1, "requests": {"led": 1}}


def test_workers_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "answers"
    file.touch()
    monkeypatch.setenv(ENV_ANSWERS, str(file))
    first, second, third = Answers(), Answers(), Answers()
    first.add_request("none")  # before it shares
    for answers in (first, second):
        answers.share()
    first.add_request("led")
    for _ in range(3):
        second.add_request("led")
    second.add_request("dola")
    second.add_report_failure()
    expected = {"report_failures": 1, "requests": {"led": 4, "none": 1, "dola": 1}}
    assert first.to_dict() == second.to_dict() == expected
    del second  # dies; what it has counted stays, and another takes its place
    third.share()
    third.add_report_failure()
    assert third.to_dict() == first.to_dict() == {**expected, "report_failures": 2}


def test_what_the_workers_find(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(ENV_APP, "another")
    monkeypatch.setenv(ENV_ANSWERS, "nothing")
    with for_workers():
        assert os.environ[ENV_APP] == WORKER_APP
        file = Path(os.environ[ENV_ANSWERS])
        assert file.read_bytes() == b""
    assert not file.exists()
