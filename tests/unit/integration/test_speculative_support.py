"""Which speculative decoding LED works inside of; everything else is refused by its name, at start."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from sglang.srt.environ import envs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import _RESERVED_ALIASES

from led_sglang.config.checks import LedParamError
from led_sglang.config.methods import METHOD_TABLE, METHODS
from led_sglang.config.server import ServerConfig
from led_sglang.integration import release_support
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.speculative_support import REFUSED, SUPPORTED, refuse_speculation

ENUM = [algorithm.name for algorithm in SpeculativeAlgorithm if algorithm.name != "NONE"]
CONFIG = ServerConfig()


def start(name: str | None, config: ServerConfig = CONFIG) -> None:
    refuse_speculation(config, SimpleNamespace(speculative_algorithm=name))


def test_every_algorithm_of_sglang_has_a_verdict() -> None:
    """A new one of a later release: read how it accepts drafts."""
    assert {*SUPPORTED, *REFUSED} == {*ENUM, *_RESERVED_ALIASES} and not {*SUPPORTED} & {*REFUSED}


@pytest.mark.parametrize("name", [*ENUM, *sorted(_RESERVED_ALIASES)])
@pytest.mark.parametrize("spell", [str.upper, str.lower], ids=["upper", "lower"])
def test_algorithms(name: str, spell: object) -> None:
    """SGLang does not mind the case."""
    said = spell(name)  # type: ignore[operator]
    if name in SUPPORTED:
        start(said)
        return
    with pytest.raises(CaptureError, match=f"--speculative-algorithm {said}: {REFUSED[name]}.*NGRAM.*--led disabled"):
        start(said)


def test_an_algorithm_of_a_plugin_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"--speculative-algorithm MEDUSA: .*Use one of NGRAM, EAGLE"):
        start("MEDUSA")


@pytest.mark.parametrize("name", [None, ""])
def test_no_speculation_refuses_nothing(name: str | None) -> None:
    start(name, ServerConfig(methods=METHODS, form="one_pass"))
    refuse_speculation(ServerConfig(methods=METHODS), SimpleNamespace())


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    config = replace(CONFIG, methods=tuple(dict.fromkeys(("led", "none", method))))
    known = METHOD_TABLE[method]
    if known.rewrite is None and not known.feeds_mixtures:
        assert method in ("led", "none")
        start("NGRAM", config)
        return
    with pytest.raises(LedParamError, match=f"--led-methods .?{method}.?.*--speculative-algorithm NGRAM.*{method}"):
        start("NGRAM", config)


def test_every_method_that_is_in_the_way_is_named() -> None:
    others = [method for method in METHODS if method not in ("led", "none")]
    with pytest.raises(LedParamError, match="Leave out " + ", ".join(others)):
        start("EAGLE", replace(CONFIG, methods=METHODS))


def test_the_one_pass_form_is_refused() -> None:
    with pytest.raises(LedParamError, match=r"--led-form one_pass .*--speculative-algorithm EAGLE3.*auto"):
        start("EAGLE3", replace(CONFIG, form="one_pass"))
    for form in ("auto", "coin_first"):
        start("EAGLE3", replace(CONFIG, form=form))


def test_simulated_acceptance_is_refused() -> None:
    with (
        envs.SGLANG_SIMULATE_ACC_LEN.override(2.5),
        pytest.raises(CaptureError, match=r"SGLANG_SIMULATE_ACC_LEN=2\.5"),
    ):
        start("NGRAM")
    start("NGRAM")


@pytest.mark.parametrize("release", ["0.5.17", "0.5.22", "0.5.22.post9"])
def test_a_release_without_the_hook_is_refused(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_support, "version", lambda package: release)
    with pytest.raises(CaptureError, match=rf"NGRAM on SGLang {release}: it needs 0\.5\.23 or newer.*--led disabled"):
        start("NGRAM")
    start(None)


@pytest.mark.parametrize("release", ["0.5.23", "0.5.23.post1", "0.5.30"])
def test_later_releases_start(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_support, "version", lambda package: release)
    start("NGRAM")
