"""`led-sglang` and the files that a release has beside the code."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from led_sglang import __version__
from led_sglang.__main__ import COMMANDS, main
from led_sglang.cli import check
from led_sglang.serving.command_line import EXAMPLES, split_arguments

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {"a.b": {"verified": True}}
INFO: dict[str, Any] = {
    "versions": {"led_sglang": "0", "sglang": "0"},
    "hooks": HOOKS,
    "markers": {"open": {"text": "<think>"}, "close": {"text": "</think>"}},
    "defaults": {"led": True, "depth": 8, "top_k": 8, "phase": "think"},
}
STATS = {"thinking_tokens": 9, "led_tokens": 9, "explored_tokens": 1, "fallbacks": 0}
SERVER = {"/led/info": INFO, "/v1/models": {"data": [{"id": "m"}]}}
META = {"led_params": {"depth": 8}, "led_stats": STATS}


def test_the_console_script_is_this_module() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "led-sglang": "led_sglang.__main__:main"
    }
    assert list(COMMANDS) == ["serve", "trace", "analysis", "evals", "check"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(("argv", "words"), [([], "COMMAND"), (["magic"], "magic")])
def test_another_command_is_refused_by_name(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert words in said and "usage: led-sglang" in said


def test_the_launchers_help_begins_with_three_commands_that_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "led_sglang.launch", "--help"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == EXAMPLES.splitlines()
    for line in lines[:3]:
        words = shlex.split(line, comments=True)
        assert words[:3] == ["python", "-m", "led_sglang.launch"]
        split_arguments(words[3:])  # SystemExit for what it does not take
    assert lines[3] == "" and lines[4].startswith("usage: ")


def test_check_reports_a_server_that_decodes_with_led() -> None:
    lines, fault = check.report(INFO, META)
    assert fault is None
    assert "hooks     1 of 1 verified" in lines


@pytest.mark.parametrize(
    ("info", "meta", "words"),
    [
        (INFO | {"hooks": {"a.b": {"verified": False}}}, META, "a.b"),
        (INFO, {}, "drops custom_params"),
        (INFO, META | {"led_stats": STATS | {"thinking_tokens": 0}}, "thinking phase"),
        (INFO, META | {"led_stats": STATS | {"led_tokens": 0}}, "fell back"),
    ],
)
def test_check_names_why_led_is_off(info: dict[str, Any], meta: dict[str, Any], words: str) -> None:
    fault = check.report(info, meta)[1]
    assert fault is not None and words in fault


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        (SERVER | {"/v1/chat/completions": {"choices": [{"meta_info": META}]}}, 0, "LED is on."),
        (SERVER | {"/v1/chat/completions": {"choices": [{}]}}, 1, "LED is off"),
        ({}, 1, "--led disabled"),
    ],
    ids=["on", "dropped", "stock"],
)  # fmt: skip
def test_check_asks_a_server(
    answers: dict[str, Any],
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(url: str, **_: Any) -> httpx.Response:
        path = httpx.URL(url).path
        request = httpx.Request("GET", url)
        if path not in answers:
            return httpx.Response(404, json={"detail": "Not Found"}, request=request)
        return httpx.Response(200, json=answers[path], request=request)

    monkeypatch.setattr(httpx, "get", answer)
    monkeypatch.setattr(httpx, "post", answer)
    assert main(["check", "--url", "http://127.0.0.1:1"]) == status
    said = capsys.readouterr()
    assert words in said.out + said.err


def test_the_changelog_is_one_of_semantic_versions() -> None:
    """Unreleased first, then versions from the newest on; changes below the usual headings."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [heading.split()[0] for heading in headings[1:]]
    assert versions[0] == __version__
    numbers = [tuple(map(int, version.split("."))) for version in versions]
    assert all(len(number) == 3 for number in numbers) and numbers == sorted(set(numbers), reverse=True)
    kinds = set(re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2602.01698"
    assert len(citation["preferred-citation"]["authors"]) == 9


def test_a_bug_report_has_to_hold_led_info() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    fields = {field["id"]: field for field in form["body"]}
    assert fields["info"]["validations"]["required"] is True
    assert "/led/info" in fields["info"]["attributes"]["label"]
    assert json.dumps(form)
