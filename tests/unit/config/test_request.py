"""Any JSON value becomes LedParams or a LedParamError that says what is legal; nothing else ever comes out."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from led_sglang.config import request as request_module
from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import METHOD_KEYS, LedParams
from led_sglang.config.request import ResolvedRequest, parse_request
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config, server_config

CONFIG = ServerConfig(num_layers=12, max_depth=12, open_ids=(5,), close_ids=(6,), vocab_size=100)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**30, -(10**30)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("method", *METHOD_KEYS["led"])
NAMES = st.sampled_from([*KEYS, "Depth", "topk", "__led_sglang"])
NEARLY_LEGAL = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["led", "LED", "dola"]),
        "depth": st.integers(-1, 14),
        "top_k": st.integers(-1, 300),
        "phase": st.sampled_from(["think", "all", "never"]),
        "exploit": st.booleans() | st.integers(0, 1),
        "latent_norm": st.booleans(),
        "normalize_layers": st.booleans(),
        "latent_offset": st.integers(-1, 2),
        "min_p": st.floats(-0.1, 1.1) | st.integers(0, 1),
        "trace": st.booleans(),
    },
)


def is_legal(params: LedParams) -> bool:
    """The contract of method "led", said a second time."""
    return (
        params.method == "led"
        and type(params.depth) is int
        and 1 <= params.depth <= 12
        and type(params.top_k) is int
        and 1 <= params.top_k <= 256
        and params.phase in ("think", "all")
        and all(type(getattr(params, key)) is bool for key in ("exploit", "latent_norm", "normalize_layers", "trace"))
        and type(params.latent_offset) is int
        and params.latent_offset in (0, 1)
        and (params.latent_offset == 0 or params.depth <= 11)
        and type(params.min_p) in (int, float)
        and 0 <= params.min_p <= 1
    )


@given(JSON | st.dictionaries(NAMES, JSON, max_size=4) | NEARLY_LEGAL)
def test_any_value_is_parsed_or_refused_with_words(value: object) -> None:
    params, said = None, ""
    try:
        params = parse_request(value, CONFIG)
    except LedParamError as error:
        said = str(error)
    if params is None:
        assert said.startswith("custom_params.led")
        assert len(said) < 400
        return
    assert is_legal(params) or params == LedParams(method="none")
    if isinstance(value, dict):
        for key, requested in value.items():
            assert getattr(params, key) == requested, key


@given(NEARLY_LEGAL)
def test_what_is_legal_is_accepted(value: dict[str, object]) -> None:
    wanted = LedParams(**value)  # type: ignore[arg-type]
    if is_legal(wanted):
        assert parse_request(value, CONFIG) == wanted
    else:
        with pytest.raises(LedParamError):
            parse_request(value, CONFIG)


@given(NEARLY_LEGAL, st.integers(0, 2**63 - 1), st.booleans(), st.integers(0, 1000))
def test_resolved_params_survive_the_way_to_the_scheduler(
    value: dict[str, object], seed: int, is_seeded: bool, sample: int
) -> None:
    resolved = ResolvedRequest(LedParams(**value), seed, is_seeded, sample)  # type: ignore[arg-type]
    wire = json.loads(json.dumps(resolved.to_wire()))
    assert ResolvedRequest.from_wire(wire) == resolved
    assert all(not isinstance(item, dict | list) for item in wire.values()), "SGLang wants scalars one level deep"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"depht": 8}, ["depht", *KEYS]),
        ({"depth": 0}, ["depth", "0", "[1, 12]"]),
        ({"depth": 13}, ["depth", "13", "[1, 12]", "--led-max-depth"]),
        ({"depth": True}, ["depth", "True", "[1, 12]"]),
        ({"depth": 2.5}, ["depth", "2.5", "[1, 12]"]),
        ({"depth": "8"}, ["depth", "'8'", "[1, 12]"]),
        ({"depth": None}, ["depth", "None", "[1, 12]"]),
        ({"depth": [8]}, ["depth", "[8]", "[1, 12]"]),
        ({"top_k": 0}, ["top_k", "0", "[1, 256]"]),
        ({"top_k": 10**30}, ["top_k", "1000000", "[1, 256]", "--led-max-top-k"]),
        ({"phase": "never"}, ["phase", "never", "think, all"]),
        ({"phase": {"a": 1}}, ["phase", "think, all"]),
        ({"exploit": 1}, ["exploit", "1", "true or false"]),
        ({"trace": "yes"}, ["trace", "yes", "true or false"]),
        ({"min_p": -0.1}, ["min_p", "-0.1", "[0, 1]"]),
        ({"min_p": 2}, ["min_p", "2", "[0, 1]"]),
        ({"min_p": math.nan}, ["min_p", "nan", "[0, 1]"]),
        ({"min_p": math.inf}, ["min_p", "inf", "[0, 1]"]),
        ({"min_p": "x"}, ["min_p", "'x'", "[0, 1]"]),
        ({"min_p": True}, ["min_p", "True", "[0, 1]"]),
        ({"latent_offset": 2}, ["latent_offset", "2", "[0, 1]"]),
        ({"latent_offset": 1, "depth": 12}, ["latent_offset", "12", "at most 11"]),
        ({"method": "dola"}, ["method", "dola", "not enabled", "--led-methods"]),
        ({"method": "magic"}, ["method", "magic", "led, none"]),
        ({"method": "none", "depth": 3}, ["depth", "belongs to method led"]),
        ({"relative_top": 0.1}, ["relative_top", "belongs to method dola", "depth"]),
        ([], ["true, false or an object", "[]"]),
        ("on", ["true, false or an object", "'on'"]),
        (1, ["true, false or an object", "1"]),
    ],
)
def test_the_message_names_key_value_and_range(value: object, named: list[str]) -> None:
    with pytest.raises(LedParamError) as caught:
        parse_request(value, CONFIG)
    for text in named:
        assert text in str(caught.value)


def test_numbers_too_long_to_print_and_deep_nesting_are_refused_like_others() -> None:
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for value in ({"depth": 10**5000}, {"top_k": -(10**5000)}, {"min_p": 10**5000}, {"phase": nested}, nested):
        with pytest.raises(LedParamError):
            parse_request(value, CONFIG)


def test_absent_true_and_false() -> None:
    off = ServerConfig(default_on=False, num_layers=12, open_ids=(5,), close_ids=(6,))
    assert parse_request(None, CONFIG) == LedParams()
    assert parse_request(None, off) is None
    assert parse_request(True, off) == LedParams()
    assert parse_request(False, CONFIG) == LedParams(method="none")
    assert parse_request({"method": "none"}, CONFIG) == LedParams(method="none")
    assert LedParams(method="none").to_dict() == {"method": "none"}


def test_the_servers_defaults_fill_what_the_request_leaves_out() -> None:
    config = ServerConfig(depth=3, top_k=5, phase="all")
    assert parse_request({"top_k": 2}, config) == LedParams(depth=3, top_k=2, phase="all")


def test_phase_think_needs_markers() -> None:
    bare = ServerConfig(num_layers=12, phase="all")
    assert parse_request(None, bare) == LedParams(phase="all")
    with pytest.raises(LedParamError, match=r"phase .*think.* needs thinking markers"):
        parse_request({"phase": "think"}, bare)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ServerConfig(depth=0), ["--led-depth", "0", "[1, 8]"]),
        (ServerConfig(depth=9), ["--led-depth", "9", "[1, 8]", "--led-max-depth"]),
        (ServerConfig(max_depth=0), ["--led-max-depth", "0"]),
        (ServerConfig(max_depth=13, num_layers=12), ["--led-max-depth", "13", "[1, 12]", "number of layers"]),
        (ServerConfig(top_k=0), ["--led-top-k", "0", "[1, 256]"]),
        (ServerConfig(top_k=257), ["--led-top-k", "257", "[1, 256]"]),
        (ServerConfig(max_top_k=0), ["--led-max-top-k", "0"]),
        (ServerConfig(phase="never"), ["--led-phase", "never", "think, all"]),
    ],
)
def test_a_bad_server_configuration_names_the_flag(config: ServerConfig, named: list[str]) -> None:
    with pytest.raises(LedParamError) as caught:
        config.check()
    for text in named:
        assert text in str(caught.value)


def test_captured_layers_never_exceed_what_the_model_has_before_its_last() -> None:
    assert ServerConfig(max_depth=8).num_captured == 7
    assert ServerConfig(max_depth=8, num_layers=12).num_captured == 8
    assert ServerConfig(max_depth=12, num_layers=12).num_captured == 11
    assert ServerConfig(max_depth=1, depth=1, num_layers=1).num_captured == 0
    shallow = ServerConfig(max_depth=1, depth=1, num_layers=12)
    assert shallow.num_captured == 0, "depth 1 is the final layer alone"
    assert parse_request({"latent_offset": 1, "phase": "all"}, shallow) is not None


def test_the_configuration_travels_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_CONFIG, raising=False)
    assert server_config() is None
    monkeypatch.setenv(ENV_CONFIG, "")
    assert server_config() is None
    export_config(CONFIG)
    assert server_config() == CONFIG


def test_confident_scans_no_more_layers_than_are_captured() -> None:
    config = replace(CONFIG, methods=("led", "confident"))
    params = parse_request({"method": "confident", "num_layers": 10}, config)
    assert params is not None
    assert params.num_scanned_layers == 10
    with pytest.raises(LedParamError, match=r"num_layers must be an integer in \[2, 10\] .*got 11"):
        parse_request({"method": "confident", "num_layers": 11}, config)


@pytest.mark.parametrize("value", [None, True, {}, {"depth": 3}, {"method": "none"}], ids=repr)
def test_a_request_is_parsed_once(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the middleware and by SGLang's `verify`, which read it one after the other."""
    request_module._parse_once.cache_clear()
    parsed: list[object] = []
    parse = request_module._parse

    def counted(value: object, config: ServerConfig) -> LedParams | None:
        parsed.append(value)
        return parse(value, config)

    monkeypatch.setattr(request_module, "_parse", counted)
    first = parse_request(value, CONFIG)
    num_parses = len(parsed)
    again = None if value is None else json.loads(json.dumps(value))
    assert num_parses and parse_request(again, CONFIG) == first and len(parsed) == num_parses


def test_values_that_are_equal_in_python_only_are_parsed_apart() -> None:
    assert parse_request({"depth": 1}, CONFIG) == LedParams(depth=1)
    for _ in range(2):  # a refusal is not remembered as anything else
        for value in ({"depth": True}, {"depth": 1.0}, {"exploit": 1}, 1, 1.0, 0):
            with pytest.raises(LedParamError):
                parse_request(value, CONFIG)
