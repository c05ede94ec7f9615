"""The CPU platform comes up where there is no accelerator, and only there."""

import importlib
import os
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from led_sglang import cpu_platform


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator and no switch, whatever machine the test runs on."""
    monkeypatch.delenv(cpu_platform.SWITCH, raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_active_on_a_bare_machine() -> None:
    assert cpu_platform.find_accelerator() is None
    assert cpu_platform.activate() == cpu_platform.PLATFORM_CLASS


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps"])
def test_inactive_where_torch_sees_a_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(getattr(torch, name), "is_available", lambda: True)
    assert cpu_platform.find_accelerator() == name
    assert cpu_platform.activate() is None


@pytest.mark.parametrize("name", ["npu", "hpu", "musa", "mlu"])
def test_inactive_where_an_extension_of_torch_sees_a_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch, name, SimpleNamespace(is_available=lambda: True), raising=False)
    assert cpu_platform.activate() is None


def test_inactive_for_an_accelerator_known_to_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert cpu_platform.find_accelerator() == "meta"
    assert cpu_platform.activate() is None


def test_switch_leaves_the_choice_to_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu_platform.SWITCH, "0")
    assert cpu_platform.activate() is None


def test_gives_way_to_the_cpu_engine_of_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_platform.activate() is None


def test_a_device_that_torch_cannot_use_is_no_bare_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nvidiactl").touch()
    assert cpu_platform._unusable_nvidia_device(tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert cpu_platform._unusable_nvidia_device(tmp_path) is None  # hidden by CUDA_VISIBLE_DEVICES=
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert cpu_platform._unusable_nvidia_device(tmp_path) == str(tmp_path / "nvidia0")
    assert "cannot use it" in caplog.text


def test_entry_point_and_class_are_what_sglang_loads() -> None:
    [entry] = [e for e in entry_points(group="sglang.srt.platforms") if e.name == "led_cpu"]
    assert entry.load() is cpu_platform.activate

    from sglang.srt.platforms import _load_platform_class

    assert _load_platform_class(cpu_platform.PLATFORM_CLASS)().is_out_of_tree()


def make_platform() -> object:
    module, _, name = cpu_platform.PLATFORM_CLASS.rpartition(".")
    return getattr(importlib.import_module(module), name)()


def make_args(**given: object) -> SimpleNamespace:
    ranks = {"tp_size": 1, "pp_size": 1, "dp_size": 1, "nnodes": 1, "enable_dp_attention": False}
    unset = {"attention_backend": None, "sampling_backend": None, "max_total_tokens": None, "sleep_on_idle": False}
    unset |= {"mem_fraction_static": None, "context_length": None}
    fixed = {"device": "cpu", "enable_deterministic_inference": False}
    return SimpleNamespace(**{**fixed, **ranks, **unset, **given})


def test_defaults_make_flags_unnecessary() -> None:
    args = make_args(attention_backend="intel_amx")  # what SGLang fills in for any CPU
    make_platform().apply_server_args_defaults(args)
    assert (args.attention_backend, args.sampling_backend, args.sleep_on_idle) == ("torch_native", "pytorch", True)
    assert args.max_total_tokens > 0


def test_defaults_leave_what_the_user_said() -> None:
    args = make_args(attention_backend="flex_attention", sampling_backend="pytorch", max_total_tokens=4096)
    make_platform().apply_server_args_defaults(args)
    assert (args.attention_backend, args.max_total_tokens) == ("flex_attention", 4096)
    other = make_args(device="cuda")
    make_platform().apply_server_args_defaults(other)
    assert other == make_args(device="cuda")


def test_ranks_are_bound_to_cores_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0,1|0,1")
    make_platform().apply_server_args_defaults(make_args(tp_size=2))
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0,1|0,1"
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND")
    make_platform().apply_server_args_defaults(make_args())
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in os.environ
    make_platform().apply_server_args_defaults(make_args(tp_size=2))
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"].count("|") == 1


@pytest.mark.parametrize(
    ("sizes", "threads"),
    [
        ({}, None),
        ({"tp_size": 2}, "4"),
        ({"dp_size": 2, "tp_size": 2}, "2"),
        ({"dp_size": 2, "tp_size": 2, "enable_dp_attention": True}, "4"),  # those of the attention are among the two
        ({"dp_size": 16}, "1"),
        ({"tp_size": 4, "nnodes": 2}, "4"),  # two of the ranks are on another machine
    ],
)
def test_ranks_share_the_threads_unless_the_user_did(
    sizes: dict[str, int], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "as it was")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    make_platform().apply_server_args_defaults(make_args(**sizes))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    make_platform().apply_server_args_defaults(make_args(**sizes))
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("ranks", "cores", "expected"),
    [(2, [0, 1], "0|1"), (2, [0, 1, 2, 3, 4], "0,1|2,3"), (3, [4, 7], "4|7|4"), (2, [3], "3|3")],
)
def test_each_rank_has_a_share_of_the_cores(ranks: int, cores: list[int], expected: str) -> None:
    from led_sglang.cpu_platform.platform import bind_threads

    assert bind_threads(ranks, cores) == expected


def test_device_is_the_string_that_sglang_compares_with() -> None:
    assert make_platform().get_device() == "cpu"
    assert make_platform().get_device(1) == "cpu"


def test_allocator_of_the_oldest_release_has_pages_of_one_token() -> None:
    from led_sglang.cpu_platform.allocator import SingleTokenPageAllocator

    allocator = SingleTokenPageAllocator(8, 1, torch.float32, "cpu", None, False)
    taken = allocator.alloc(8)
    assert sorted(taken.tolist()) == list(range(1, 9))
    assert allocator.alloc(1) is None
    with pytest.raises(ValueError, match="--page-size is 16"):
        SingleTokenPageAllocator(8, 16, torch.float32, "cpu", None, False)
