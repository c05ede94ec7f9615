"""Arrangements of processes, ranks and stages that LED does not work in are refused with what would work."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from led_sglang.config.server import ServerConfig
from led_sglang.integration import release_support
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.topology_support import ENV_APP, WORKER_APP, refuse_topology
from led_sglang.wire import HANDOFF_SPACE

CONFIG = ServerConfig(depth=2, max_depth=2, num_layers=12)


def args_of(**changes: Any) -> Any:
    ordinary = {"tokenizer_worker_num": 1, "attn_dp_size": 1, "enable_dp_lm_head": False, "pp_size": 1}
    return SimpleNamespace(**ordinary | {"speculative_algorithm": None} | changes)


WORKING: dict[str, dict[str, Any]] = {
    "one process": {},
    "workers": {"tokenizer_worker_num": 2},
    "data-parallel attention": {"attn_dp_size": 2, "enable_dp_lm_head": True},
    "a pipeline": {"pp_size": 2},
    "a prefill server": {"disaggregation_mode": "prefill"},
    "a decode server": {"disaggregation_mode": "decode"},
}


@pytest.mark.parametrize("name", WORKING)
def test_what_works(name: str) -> None:
    refuse_topology(CONFIG, args_of(**WORKING[name]))


@pytest.mark.parametrize("name", [name for name in WORKING if name != "one process"])
def test_an_old_release_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_support, "version", lambda name: "0.5.17")
    with pytest.raises(CaptureError, match=r"on SGLang 0\.5\.17: it needs 0\.5\.23"):
        refuse_topology(CONFIG, args_of(**WORKING[name]))
    refuse_topology(CONFIG, args_of())


def test_workers_of_another_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would validate nothing, and what they send is refused request by request."""
    workers = args_of(tokenizer_worker_num=2)
    monkeypatch.setenv(ENV_APP, WORKER_APP)
    refuse_topology(CONFIG, workers)
    monkeypatch.setenv(ENV_APP, "mine:app")
    with pytest.raises(CaptureError, match="--tokenizer-worker-num 2 and SGLANG_HTTP_SERVER_APP_PATH=mine:app"):
        refuse_topology(CONFIG, workers)
    refuse_topology(CONFIG, args_of())


def test_workers_and_a_key() -> None:
    """SGLang's workers assert that there is none, one by one, behind a start that seemed to go on."""
    with pytest.raises(CaptureError, match="--tokenizer-worker-num 2 with --api-key"):
        refuse_topology(CONFIG, args_of(tokenizer_worker_num=2, api_key="secret"))
    refuse_topology(CONFIG, args_of(api_key="secret"))


def test_a_head_that_is_cut_over_other_ranks() -> None:
    with pytest.raises(CaptureError, match=r"--attn-dp-size 2 without --enable-dp-lm-head: .*Add the flag"):
        refuse_topology(CONFIG, args_of(attn_dp_size=2))


FITS: dict[str, tuple[ServerConfig, int, str | None]] = {  # of stages; the partition, None: an even one
    "the last stage has just enough": (ServerConfig(max_depth=5, num_layers=12), 2, None),
    "a partition": (ServerConfig(max_depth=8, num_layers=12), 2, "3,9"),
    "no layer is captured": (ServerConfig(depth=1, max_depth=1, num_layers=12), 4, None),
    "many layers": (ServerConfig(max_depth=8, num_layers=64), 4, None),
}
SHORT: dict[str, tuple[ServerConfig, int, str | None, str]] = {  # and what is said
    "an even one": (
        ServerConfig(max_depth=8, num_layers=12),
        2,
        None,
        "layers 4 to 11 .*layers 7 to 12, of which it can use 5. "
        "Use --led-max-depth 5 or SGLANG_PP_LAYER_PARTITION=3,9,",
    ),
    "one layer short": (
        ServerConfig(max_depth=6, num_layers=12),
        2,
        None,
        "Use --led-max-depth 5 or SGLANG_PP_LAYER_PARTITION=5,7,",
    ),
    "of four stages": (ServerConfig(max_depth=30, num_layers=36), 4, None, "PARTITION=2,2,1,31,"),
    "a bad partition": (ServerConfig(max_depth=8, num_layers=12), 2, "4,8", "use 7. .*depth 7 or .*=3,9,"),
    "no partition would do": (ServerConfig(max_depth=11, num_layers=12), 4, None, "Use --led-max-depth 2, or start"),
    "all layers of a method": (
        ServerConfig(methods=("led", "dola"), num_layers=12),
        2,
        None,
        "Use methods with fewer layers or SGLANG_PP_LAYER_PARTITION=",
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_pipelines_whose_last_stage_has_the_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, num_stages, partition = FITS[name]
    split(monkeypatch, partition)
    refuse_topology(config, args_of(pp_size=num_stages))


@pytest.mark.parametrize("name", SHORT)
def test_pipelines_whose_last_stage_lacks_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proposed fits."""
    config, num_stages, partition, words = SHORT[name]
    split(monkeypatch, partition)
    with pytest.raises(CaptureError, match=f"--pp-size {num_stages} and .*{words}") as caught:
        refuse_topology(config, args_of(pp_size=num_stages))
    if depth := re.search(r"--led-max-depth (\d+)", str(caught.value)):
        refuse_topology(replace(config, depth=1, max_depth=int(depth[1])), args_of(pp_size=num_stages))
    if proposed := re.search(r"PARTITION=([\d,]*\d)", str(caught.value)):
        split(monkeypatch, proposed[1])
        refuse_topology(config, args_of(pp_size=num_stages))


def split(monkeypatch: pytest.MonkeyPatch, partition: str | None) -> None:
    monkeypatch.delenv("SGLANG_PP_LAYER_PARTITION", raising=False)
    if partition is not None:
        monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", partition)


UNTRIED: dict[str, tuple[dict[str, Any], ServerConfig]] = {
    "--speculative-algorithm EAGLE": ({"speculative_algorithm": "EAGLE"}, CONFIG),
    "--pp-size 2": ({"pp_size": 2}, CONFIG),
    "soft_thinking in --led-methods": ({}, ServerConfig(methods=("led", "soft_thinking"), num_layers=12)),
}
NEVER_WITH: dict[str, dict[str, Any]] = {
    "--attn-dp-size 2": {"attn_dp_size": 2, "enable_dp_lm_head": True},
    "--pp-size 2": {"pp_size": 2},
    "--disaggregation-mode decode": {"disaggregation_mode": "decode"},
}


@pytest.mark.parametrize("flag", NEVER_WITH)
@pytest.mark.parametrize("other", UNTRIED)
def test_combinations_that_no_test_has_shown(flag: str, other: str) -> None:
    changes, config = UNTRIED[other]
    if changes == NEVER_WITH[flag]:
        return
    with pytest.raises(CaptureError, match=r"LED does not work with .*: .*Leave one of them out") as caught:
        refuse_topology(config, args_of(**NEVER_WITH[flag], **changes))
    assert flag in str(caught.value) and other in str(caught.value)


def test_disaggregation_beside_data_parallel_attention() -> None:
    with pytest.raises(CaptureError, match="Leave one of them out"):
        refuse_topology(CONFIG, args_of(**NEVER_WITH["--attn-dp-size 2"], disaggregation_mode="prefill"))


def test_a_trace_that_has_no_room_between_two_servers() -> None:
    """What is proposed fits, and is refused one above it."""
    config = replace(CONFIG, max_top_k=400)
    refuse_topology(config, args_of())
    with pytest.raises(CaptureError, match="--disaggregation-mode decode and --led-max-top-k 400") as caught:
        refuse_topology(config, args_of(disaggregation_mode="decode"))
    [most] = re.findall(r"Use --led-max-top-k (\d+)", str(caught.value))
    refuse_topology(replace(config, max_top_k=int(most)), args_of(disaggregation_mode="decode"))
    assert num_values(int(most) + 1, config.max_depth) > HANDOFF_SPACE >= num_values(int(most), config.max_depth)


def num_values(top_k: int, depth: int) -> int:
    """Candidates, and the probabilities of both branches; the depths' entropies."""
    return 3 * top_k + depth
