"""One table of parameters: the documentation, the evaluation and the command line say what it says."""

from dataclasses import fields
from pathlib import Path

import pytest

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import FIELDS, METHOD_KEYS, METHODS, LedParams
from led_sglang.config.request import parse_request
from led_sglang.config.server import ServerConfig
from led_sglang.evals.methods import parse_methods
from led_sglang.serving.command_line import build_parser
from scripts.reference_tables import rows_of

DOCS = Path(__file__).resolve().parents[3] / "docs"
CONFIG = ServerConfig(methods=METHODS, max_depth=12, num_layers=12, open_ids=(5,), close_ids=(6,))
ILLEGAL = (-1, 1 << 21, "magic", None, [])


def test_every_field_is_a_row_and_belongs_to_a_method() -> None:
    assert [f.name for f in fields(LedParams)] == ["method", *(row.name for row in FIELDS.values())]
    assert all(row.methods and set(row.methods) <= set(METHODS) for row in FIELDS.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_documentation_has_the_rows(method: str) -> None:
    page = (DOCS / ("api.md" if method == "led" else "methods.md")).read_text().splitlines()
    assert [row for row in rows_of(method) if row not in page] == []


@pytest.mark.parametrize(("method", "key"), [(method, key) for method, keys in METHOD_KEYS.items() for key in keys])
def test_every_key_is_checked_and_its_default_is_legal(method: str, key: str) -> None:
    default = FIELDS[key].default
    applied = parse_request({"method": method, key: default}, CONFIG)
    assert applied is not None and applied.to_dict()[key] == default
    for value in ILLEGAL:
        with pytest.raises(LedParamError, match=rf"custom_params\.led\.{key} must be "):
            parse_request({"method": method, key: value}, CONFIG)
    assert parse_methods(f"{method}:{key}={default}")[0].params[0][0] == key


def test_the_command_line_offers_what_the_server_has_a_default_for() -> None:
    options = vars(build_parser().parse_args([]))
    for key, row in FIELDS.items():
        assert row.server_default == (f"led_{key}" in options)
        if row.server_default:
            assert getattr(ServerConfig(), row.name) == row.default
