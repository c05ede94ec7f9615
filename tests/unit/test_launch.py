"""The arguments: LED's are taken out, SGLang's are passed on, a YAML may hold both and the command line wins."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from led_sglang.config.checks import LedParamError
from led_sglang.launch import main
from led_sglang.serving.command_line import build_parser, server_config_of, split_arguments


@pytest.fixture
def config_file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "server.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults() -> None:
    options, rest = split_arguments([])
    assert rest == []
    config = server_config_of(options)
    assert config.default_on
    assert (config.depth, config.max_depth, config.top_k, config.phase) == (8, 8, 8, "think")


def test_sglangs_arguments_pass_through_in_order() -> None:
    rest = ["--model-path", "m", "--tp", "2", "--json-model-override-args", '{"a": 1}']
    options, passed = split_arguments([*rest[:2], "--led-depth", "4", *rest[2:], "--led", "off"])
    assert passed == rest
    assert (options.led, options.led_depth) == ("off", 4)


def test_abbreviations_are_not_guessed() -> None:
    options, rest = split_arguments(["--led-max", "4"])
    assert rest == ["--led-max", "4"]
    assert options.led_max_depth is None


def test_config_yaml_is_split(config_file) -> None:
    path = config_file("model-path: m\ntp: 2\nled-depth: 5\nled_top_k: 3\nled-phase: all\n")
    for form in (["--config", path], [f"--config={path}"]):
        options, rest = split_arguments(["--port", "1", *form, "--host", "h"])
        assert (options.led_depth, options.led_top_k, options.led_phase) == (5, 3, "all")
        assert rest == ["--port", "1", "--host", "h"]
        assert options.settings == {"model-path": "m", "tp": 2}


def test_config_yaml_with_led_keys_only_leaves_nothing_for_sglang(config_file) -> None:
    options, rest = split_arguments(["--config", config_file("led: off\n")])
    assert rest == []
    assert options.settings == {}


def test_the_command_line_wins(config_file) -> None:
    path = config_file("led: off\nled-depth: 5\nled-top-k: 3\n")
    options, _ = split_arguments(["--led-depth", "2", "--config", path, "--led", "on"])
    assert (options.led, options.led_depth, options.led_top_k) == ("on", 2, 3)


@pytest.mark.parametrize(
    ("written", "meant"), [("on", "on"), ("off", "off"), ("true", "on"), ("'off'", "off"), ("disabled", "disabled")]
)
def test_yamls_booleans_are_on_and_off(config_file, written: str, meant: str) -> None:
    options, _ = split_arguments(["--config", config_file(f"led: {written}\n")])
    assert options.led == meant


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("led-depht: 5\n", ["led-depht", "led-depth", "led-top-k"]),
        ("led: perhaps\n", ["led", "perhaps", "on, off, disabled"]),
        ("led-depth: five\n", ["led-depth", "five", "integer"]),
        ("led-depth: true\n", ["led-depth", "True", "integer"]),
        ("led-depth: 2.5\n", ["led-depth", "2.5", "integer"]),
        ("led-phase: never\n", ["led-phase", "never", "think, all"]),
        ("- a\n- b\n", ["mapping", "list"]),
        ("led: [on\n", ["server.yaml"]),
    ],
)
def test_bad_yaml_is_refused_by_name(config_file, capsys: pytest.CaptureFixture[str], text: str, named: list) -> None:
    with pytest.raises(SystemExit) as caught:
        split_arguments(["--config", config_file(text)])
    assert caught.value.code not in (0, None)
    said = capsys.readouterr().err + str(caught.value.code)
    for word in named:
        assert word in said


def test_a_missing_config_file_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match=r"nowhere\.yaml"):
        split_arguments(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--led-depth", "0"], ["--led-depth", "0"]),
        (["--led-depth", "9", "--led-max-depth", "8"], ["--led-depth", "9", "[1, 8]"]),
        (["--led-max-depth", "0"], ["--led-max-depth", "0"]),
        (["--led-top-k", "300"], ["--led-top-k", "300", "[1, 256]"]),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(argv: list[str], named: list[str]) -> None:
    options, _ = split_arguments(argv)
    with pytest.raises(LedParamError) as caught:
        server_config_of(options)
    for word in named:
        assert word in str(caught.value)


def test_what_the_parser_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--led", "maybe"], ["--led-depth", "x"], ["--led-phase", "never"], ["--led-backend", "magic"]):
        with pytest.raises(SystemExit) as caught:
            split_arguments(argv)
        assert caught.value.code == 2
        assert argv[0] in capsys.readouterr().err


def test_max_depth_follows_a_larger_depth() -> None:
    options, _ = split_arguments(["--led-depth", "11"])
    assert server_config_of(options).max_depth == 11
    options, _ = split_arguments(["--led-depth", "3"])
    assert server_config_of(options, default_depth=12).max_depth == 12


def test_the_embedded_servers_default_depth_does_not_hide_a_smaller_max_depth() -> None:
    options, _ = split_arguments(["--led-depth", "3", "--led-max-depth", "4"])
    assert server_config_of(options, default_depth=12).max_depth == 4


def test_fewer_captured_layers_lower_the_default_depth() -> None:
    """The way out that the refusal of an uncapturable model names: --led-max-depth 1."""
    options, _ = split_arguments(["--led-max-depth", "1"])
    config = server_config_of(options)
    assert (config.depth, config.max_depth) == (1, 1)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for action in build_parser()._actions:
        assert action.help, f"{action.option_strings} has no help"
        assert action.option_strings[-1] in said
    assert "--help-sglang" in said


YAML_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
YAML = st.recursive(
    YAML_SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(YAML_SCALARS, inner, max_size=3),
    max_leaves=5,
)
LED_NAMES = st.sampled_from([action.dest for action in build_parser()._actions if action.dest.startswith("led")])
SETTINGS = YAML | st.dictionaries(LED_NAMES | st.sampled_from(["led-depth", "led-methods", "tp", "check"]), YAML)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETTINGS.map(yaml.safe_dump) | st.text(max_size=40) | st.binary(max_size=40))
def test_any_config_file_is_read_or_refused_with_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes
) -> None:
    """Never a traceback: what comes out is a configuration, SystemExit with words, or LedParamError."""
    path = tmp_path / "server.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert outcome(path, capsys) in ("read", "refused with words")


def outcome(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        options, _ = split_arguments(["--config", str(path)])
        server_config_of(options).check()
    except SystemExit as error:
        said = capsys.readouterr().err + str(error.code)
        return "refused with words" if error.code not in (0, None) and "led" in said else f"silence: {said}"
    except LedParamError as error:
        return "refused with words" if "--led" in str(error) else str(error)
    return "read"
