"""What a server says is what the user reads, whichever command asked and in whatever envelope it comes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from led_sglang import trace
from led_sglang.evals import __main__ as evals
from led_sglang.evals.run import client
from led_sglang.serving.ports import HeldPort
from tests.unit.evals.fake_server import FakeServer
from training import evaluate

Command = Callable[..., int]


def run(url: str, folder: Path, *more: str) -> int:
    requested = ["--task", "embedded", "--limit", "2", "--samples", "1", "--out", str(folder / "run"), "--quiet"]
    return evals.main(["run", *requested, "--base-url", url, *more])


def reproduce(url: str, folder: Path, *more: str) -> int:
    requested = ["--stages", "temperatures", "--limit", "2", "--few", "1", "--runs", str(folder / "runs")]
    return evals.main(["reproduce", *requested, "--out", str(folder / "report"), "--base-url", url, *more])


def ask_trace(url: str, folder: Path, *more: str) -> int:
    return trace.main(["Why?", "--url", url.removesuffix("/v1"), "--html", str(folder / "out.html"), *more])


def ask_evaluate(url: str, folder: Path, *more: str) -> int:
    return evaluate.main(["--problems", "2", "--base-url", url, *more])


COMMANDS: dict[str, Command] = {"run": run, "reproduce": reproduce, "trace": ask_trace, "evaluate": ask_evaluate}
REFUSALS: dict[str, tuple[Response, str]] = {
    "openai": (JSONResponse({"error": {"message": "the depth is too large"}}, 400), "HTTP 400: the depth is too large"),
    "sglang": (
        JSONResponse({"object": "error", "message": "no such luck", "code": 422}, 422),
        "HTTP 422: no such luck",
    ),
    "fastapi": (
        JSONResponse({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422),
        "HTTP 422: field required",
    ),
    "key": (JSONResponse({"error": "Unauthorized"}, 401), "wants an API key (--api-key): HTTP 401: Unauthorized"),
    "forbidden": (JSONResponse({"error": {"message": "not for you"}}, 403), "HTTP 403: not for you"),
    "not found": (JSONResponse({"detail": "Not Found"}, 404), "is not there, or the model is not: HTTP 404: Not Found"),
    "gateway": (HTMLResponse("<style>a{}</style><h1>502 Bad\n Gateway</h1>", 502), "HTTP 502: 502 Bad Gateway"),
    "nothing": (Response(None, 418), "HTTP 418: I'm a Teapot"),
    "moved": (RedirectResponse("https://elsewhere.example/v1", 308), "has moved to https://elsewhere.example/v1"),
    "page": (HTMLResponse("<h1>Welcome</h1>"), "is the address right?"),
    "screen": (JSONResponse({"message": "a\x1b[2Jb"}, 400), "HTTP 400: a\ufffd[2Jb"),
}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "GONE_LIMIT_S", 0.01)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_reported_in_the_servers_words(
    command: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    response, said = REFUSALS[refusal]
    if command == "trace" and refusal == "page":
        said = "is it an LED server?"
    with FakeServer(refusal=response) as server:
        assert COMMANDS[command](server.url, tmp_path) == 1
    message = capsys.readouterr().err
    assert said in message and "no server" not in message and server.url.removesuffix("/v1") in message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_request_carries_the_key(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(api_key="secret") as server:
        assert COMMANDS[command](server.url, tmp_path, "--api-key", "secret") == 0
        assert len(server.seen) > 1 and {key for _, key in server.seen} == {"Bearer secret"}
        assert COMMANDS[command](server.url, tmp_path / "other", "--api-key", "wrong") == 1
    message = capsys.readouterr().err
    assert "does not take this API key: HTTP 401: Unauthorized" in message and "wrong" not in message


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HeldPort() as port:
        assert COMMANDS[command](f"http://127.0.0.1:{port.number}/v1", tmp_path) == 1
    assert f"no answer from http://127.0.0.1:{port.number}" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:30000", "ftp://127.0.0.1", "http://", "http://[::1", "http://a:99999", "http://a:0", "http://a b"],
)
def test_an_address_that_is_none(command: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        COMMANDS[command](url, tmp_path)
    assert "is not an address like http://127.0.0.1:30000" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_header_can_carry(
    command: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        COMMANDS[command]("http://127.0.0.1:1/v1", tmp_path, "--api-key", key)
    assert "printable ASCII characters" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_server_that_takes_too_long(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(delay_s=1) as server:
        assert COMMANDS[command](server.url, tmp_path, "--timeout-s", "0.5") == 1
    assert f"no answer from {server.url} in 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_an_unknown_model_is_reported_with_those_there_are(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as server:
        assert COMMANDS[command](server.url, tmp_path, "--model", "nope") == 1
        assert "does not serve 'nope'; it serves fake" in capsys.readouterr().err
        assert COMMANDS[command](server.url, tmp_path, "--model", "fake:adapter") == 0


def test_a_run_keeps_the_versions_of_a_server_with_a_key(tmp_path: Path) -> None:
    with FakeServer(api_key="secret") as server:
        assert run(server.url, tmp_path, "--api-key", "secret") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["server"] == {"sglang": "0.0.1"}
