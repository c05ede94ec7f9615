"""The published schema and the parser say the same."""

from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import METHOD_KEYS
from led_sglang.config.methods import METHODS
from led_sglang.config.request import parse_request
from led_sglang.config.schema import describing, led_schema
from led_sglang.config.server import ServerConfig

CONFIG = ServerConfig(
    methods=("led", "dola", "soft_thinking", "confident"), max_depth=12, num_layers=12, open_ids=(5,), close_ids=(6,)
)
VALIDATOR = jsonschema.Draft202012Validator(led_schema(CONFIG))
KEYS = sorted({key for keys in METHOD_KEYS.values() for key in keys})
SCALARS = st.none() | st.booleans() | st.integers(-2, 300) | st.floats(-1, 101) | st.sampled_from(["low", "all", "x"])
VALUES = st.fixed_dictionaries({}, optional={"method": st.sampled_from([*METHODS, "magic"])}).flatmap(
    lambda start: st.dictionaries(st.sampled_from([*KEYS, "depht"]), SCALARS, max_size=2).map(lambda d: {**start, **d})
)


def is_accepted(value: object) -> bool:
    try:
        parse_request(value, CONFIG)
    except LedParamError:
        return False
    return True


def says_less(value: Any) -> bool:
    """What the schema's docstring excepts."""
    if not isinstance(value, dict):
        return False
    floats = any(isinstance(v, float) and v.is_integer() for v in value.values())
    return floats or (value.get("latent_offset") == 1 and value.get("depth", 8) > CONFIG.num_captured)


@settings(max_examples=600)
@given(VALUES | SCALARS)
def test_what_the_schema_allows_is_accepted_and_nothing_else(value: object) -> None:
    if VALIDATOR.is_valid(value):
        assert is_accepted(value) or says_less(value)
    else:
        assert not is_accepted(value)


def test_the_document_names_led_where_custom_params_is() -> None:
    document = {"components": {"schemas": {"ChatCompletionRequest": {"properties": {"custom_params": {}}}}}}
    found = describing(lambda: document, CONFIG)()["components"]["schemas"]
    assert "LedParams" in str(found["ChatCompletionRequest"]["properties"]["custom_params"])
    assert found["LedParams"] == led_schema(CONFIG)
