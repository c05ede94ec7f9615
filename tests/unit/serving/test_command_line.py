"""The user's word beats every default of ours, wherever and however he says it: generated from SGLang's own parser.

A default that only looks at some spellings replaces what was said in another one. `--config` with `model-path:` in the
file once served the embedded model.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from led_sglang import launch
from led_sglang.config.server import ENV_CONFIG, ENV_HOST, default_host
from led_sglang.cpu_platform import find_accelerator
from led_sglang.embedded import MODEL_DIR
from led_sglang.serving.command_line import split_arguments

OURS = {"model_path": str(MODEL_DIR), "served_model_name": "led-embedded", "dtype": "float32", "host": "0.0.0.0"}
THEIRS = {"model_path": "someone/model", "served_model_name": "name", "dtype": "bfloat16", "host": "::1"}
OTHERS = {"model_path": "other/model", "served_model_name": "other", "dtype": "float16", "host": "10.0.0.1"}
SGLANGS = {"served_model_name": None, "dtype": "auto"}  # where the model is not the embedded one


class Reached(Exception):
    """Far enough."""


@pytest.fixture(autouse=True)
def in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every default of ours holds, the image's too."""
    monkeypatch.setenv(ENV_HOST, OURS["host"])
    monkeypatch.delenv(ENV_CONFIG, raising=False)


def sglangs_parser() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def flags_of(field: str) -> list[str]:
    """Every option of SGLang's parser for the field, and each one's shortest abbreviation."""
    parser = sglangs_parser()
    every = list(parser._option_string_actions)
    [action] = [action for action in parser._actions if action.dest == field]
    found = list(action.option_strings)
    for option in action.option_strings:
        lengths = range(3, len(option))
        short = (option[:n] for n in lengths if [o for o in every if o.startswith(option[:n])] == [option])
        found += itertools.islice(short, 1)
    return found


Spelling = Callable[[Path, str], list[str]]  # (folder for a file, value) to arguments


def spellings(field: str) -> Iterator[tuple[str, Spelling]]:
    for flag in flags_of(field):
        yield f"{flag} VALUE", lambda folder, value, flag=flag: [flag, value]
        yield f"{flag}=VALUE", lambda folder, value, flag=flag: [f"{flag}={value}"]
        for key in dict.fromkeys((flag[2:], flag[2:].replace("-", "_"))):
            yield f"{key}: VALUE", lambda folder, value, key=key: ["--config", in_file(folder, {key: value})]
            yield f"{key}: VALUE in =", lambda folder, value, key=key: [f"--config={in_file(folder, {key: value})}"]


def in_file(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "server.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def server_args_of(arguments: list[str]) -> Any:
    server_args, is_embedded = launch.server_arguments(*split_arguments(arguments))
    assert is_embedded == (server_args.model_path == OURS["model_path"])
    return server_args


def fields_of(arguments: list[str]) -> dict[str, str]:
    server_args = server_args_of(arguments)
    return {field: getattr(server_args, field) for field in OURS}


def expected(said: dict[str, str]) -> dict[str, Any]:
    return {**OURS, **(SGLANGS if "model_path" in said else {}), **said}


def test_every_default_is_tried() -> None:
    assert set(launch._defaults(is_embedded=True)) == set(OURS)
    assert {"--model-path", "--model", "--model-p"} <= set(flags_of("model_path"))


def test_nothing_said_is_the_embedded_model() -> None:
    assert fields_of([]) == OURS


@pytest.mark.parametrize("field", OURS)
def test_a_word_in_any_spelling_beats_our_default(field: str, tmp_path: Path) -> None:
    found = {name: fields_of(spelling(tmp_path, THEIRS[field])) for name, spelling in spellings(field)}
    assert len(found) >= 4
    assert found == dict.fromkeys(found, expected({field: THEIRS[field]}))


@pytest.mark.parametrize("fields", [c for n in (2, 3, 4) for c in itertools.combinations(OURS, n)], ids="+".join)
def test_some_words_in_the_file_and_some_on_the_command_line(fields: tuple[str, ...], tmp_path: Path) -> None:
    said = {field: THEIRS[field] for field in fields}
    flags = {field: f"--{field.replace('_', '-')}" for field in fields}
    for split in range(len(fields) + 1):
        file = in_file(tmp_path, {field: said[field] for field in fields[:split]}) if split else None
        words = [word for field in fields[split:] for word in (flags[field], said[field])]
        assert fields_of([*words, *(["--config", file] if file else [])]) == expected(said)


@pytest.mark.parametrize("field", OURS)
def test_null_in_the_file_says_nothing(field: str, tmp_path: Path) -> None:
    file = tmp_path / "null.yaml"
    file.write_text(f"{field.replace('_', '-')}:\n")
    assert fields_of(["--config", str(file)]) == expected({})


@pytest.mark.parametrize("field", OURS)
def test_the_command_line_beats_the_file(field: str, tmp_path: Path) -> None:
    flag = f"--{field.replace('_', '-')}"
    config = ["--config", in_file(tmp_path, {field: OTHERS[field]})]
    for arguments in ([*config, flag, THEIRS[field]], [flag, THEIRS[field], *config]):
        assert fields_of(arguments) == expected({field: THEIRS[field]})


@pytest.mark.parametrize(
    "arguments",
    [["someone/model"], ["--model_path", "someone/model"], ["--model_path=someone/model"], ["-model-path", "m"]],
    ids=" ".join,
)
def test_what_sglang_cannot_read_starts_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        server_args_of(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_file_is_never_left_unread(tmp_path: Path) -> None:
    """SGLang's parser takes an abbreviation of --config, and then reads no file; and it takes the last of several."""
    file = in_file(tmp_path, {"model-path": "someone/model"})
    for arguments in (["--conf", file], [f"--confi={file}"], ["--config", in_file(tmp_path, {"config": file})]):
        with pytest.raises(SystemExit, match="--config"):
            server_args_of(arguments)
    with pytest.raises(SystemExit):
        server_args_of(["--config", file, f"--config={file}"])


def test_a_setting_that_sglang_reads_from_no_file_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lora_paths"):
        server_args_of(["--config", in_file(tmp_path, {"lora-paths": ["a=b"]})])


@pytest.mark.parametrize(
    ("arguments", "given", "threads"),
    [([], None, "1"), ([], "3", "3"), (["FILE"], None, None), (["FILE"], "3", "3"), (["--model", "m"], None, None)],
)
def test_one_thread_is_for_the_embedded_model_alone(
    arguments: list[str], given: str | None, threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)

    def stop(host: str, port: int) -> None:
        raise Reached

    monkeypatch.setattr(launch, "refuse_taken", stop)
    if arguments == ["FILE"]:
        arguments = ["--config", in_file(tmp_path, {"model_path": "someone/model"})]
    with pytest.raises(Reached):
        launch.main(arguments)
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_led_disabled_forgets_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that a LED server's process starts inherits its configuration, and would be hooked."""
    monkeypatch.setenv(ENV_CONFIG, "{}")

    def stop(options: argparse.Namespace, rest: list[str]) -> None:
        raise Reached

    monkeypatch.setattr(launch, "server_arguments", stop)
    with pytest.raises(Reached):
        launch.main(["--led", "disabled"])
    assert ENV_CONFIG not in os.environ


def test_no_host_of_ours_outside_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_HOST)
    assert default_host() is None
    assert server_args_of([]).host == "127.0.0.1"


# The platform's defaults: what SGLang decides in the end.

PLATFORM = {
    "attention_backend": ("torch_native", ["flex_attention"]),
    "max_total_tokens": (32768, ["4096"]),
    "sleep_on_idle": (True, []),
    "sampling_backend": ("pytorch", ["pytorch"]),
    "device": ("cpu", ["cpu"]),
}


def in_effect(server_args: Any) -> Any:
    from led_sglang.integration import support

    server_args.resolve_once()
    return support.in_effect(server_args)


def engine_args(**said: Any) -> Any:
    from sglang.srt.server_args import ServerArgs

    return ServerArgs(model_path=str(MODEL_DIR), **said)


@pytest.mark.skipif(find_accelerator() is not None, reason="our platform stays off where there is an accelerator")
class TestPlatform:
    @pytest.mark.parametrize("field", PLATFORM)
    def test_default(self, field: str) -> None:
        assert getattr(in_effect(server_args_of([])), field) == PLATFORM[field][0]

    @pytest.mark.parametrize(("field", "value"), [(f, v) for f, (_, values) in PLATFORM.items() for v in values])
    def test_a_word_beats_it(self, field: str, value: str, tmp_path: Path) -> None:
        flag, typed = f"--{field.replace('_', '-')}", int(value) if value.isdigit() else value
        said = [[flag, value], [f"{flag}={value}"], ["--config", in_file(tmp_path, {field: typed})]]
        for server_args in (*map(server_args_of, said), engine_args(**{field: typed})):
            assert getattr(in_effect(server_args), field) == typed

    def test_a_share_of_the_memory_is_not_capped(self, tmp_path: Path) -> None:
        file = in_file(tmp_path, {"mem-fraction-static": 0.25})
        for server_args in (server_args_of(["--config", file]), engine_args(mem_fraction_static=0.25)):
            view = in_effect(server_args)
            assert (view.mem_fraction_static, view.max_total_tokens) == (0.25, None)

    def test_a_context_fits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1")
        view = in_effect(server_args_of(["--config", in_file(tmp_path, {"context-length": 40960})]))
        assert (view.context_length, view.max_total_tokens) == (40960, 40960)
