"""One table of the server's arguments: command line, YAML, checks and documentation say what it says."""

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from led_sglang.config.arguments import ARGUMENTS, BACKENDS, SWITCH, Argument
from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import FIELDS, LedParams
from led_sglang.config.legal import Choice, Choices, Integer, Legal, Real, Text
from led_sglang.config.methods import METHODS
from led_sglang.config.server import ServerConfig
from led_sglang.serving.command_line import build_parser
from scripts.reference_tables import HEADER, argument_rows, rows_of

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "cli.md"
ILLEGAL: dict[type[Legal], Any] = {Integer: 0, Real: 1.5, Choice: "magic", Choices: ("led", "magic"), Text: 1}
COMPUTED = {"depth", "max_depth"}  # from each other and the model: `server_config_of`
EVERY = pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda argument: argument.flag)


@EVERY
def test_every_argument_is_a_field_with_its_default_and_is_checked(argument: Argument) -> None:
    default = getattr(ServerConfig(), argument.field)
    assert argument.field in COMPUTED or default == argument.default
    ServerConfig().check()
    illegal = ServerConfig(**{argument.field: ILLEGAL[type(argument.legal)]})
    with pytest.raises(LedParamError, match=rf"^{argument.flag} must be "):
        illegal.check()


def test_every_flag_of_ours_is_a_row() -> None:
    offered = [flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--led")]
    assert offered == [argument.flag for argument in (SWITCH, *ARGUMENTS)]


def test_the_documentation_has_the_rows_and_no_other() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `--led")]
    assert rows == argument_rows()


def keys_listed(page: Path) -> list[str]:
    """The rows of every table of parameters in a page."""
    lines = page.read_text().splitlines()
    head = HEADER.splitlines()[0]
    tables = [lines[at + 2 :] for at, line in enumerate(lines) if line == head]
    return [row for table in tables for row in itertools.takewhile(lambda line: line.startswith("|"), table)]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_no_table_of_parameters_is_written_by_hand(page: Path) -> None:
    generated = {row for method in METHODS for row in rows_of(method)}
    assert [row for row in keys_listed(page) if row not in generated and not row.startswith("| `method` |")] == []


def test_the_backends_are_the_ones_of_the_step() -> None:
    from led_sglang import ops

    assert {"auto", *ops.BACKENDS} == set(BACKENDS)


def test_one_name_is_one_thing() -> None:
    """`max_topk` beside `max_top_k`, `num_layers` of the model and of a method: each was one name of two things."""
    shared = {row.name for row in FIELDS.values() if row.server_default}
    squeezed = [
        {field.name.replace("_", ""): field.name for field in fields(kind)} for kind in (LedParams, ServerConfig)
    ]
    both = {squeezed[0][name] for name in squeezed[0].keys() & squeezed[1].keys()}
    assert both == shared


def test_the_keys_of_requests_keep_their_names() -> None:
    params = LedParams.from_keys({"method": "soft_thinking", "max_topk": 3})
    assert params.soft_top_k == 3
    assert params.to_dict() == {"method": "soft_thinking", "max_topk": 3, "early_stop_entropy": 0.01} | {
        "early_stop_length": 256,
        "filters_first": False,
    }
    assert LedParams("confident").to_dict() == {
        "method": "confident",
        "num_layers": 10,
        "select_method": "trough",
        "p": 1.0,
    }
    with pytest.raises(KeyError):
        LedParams.from_keys({"soft_top_k": 3})
