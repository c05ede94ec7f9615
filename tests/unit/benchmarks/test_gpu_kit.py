"""The GPU kit without a GPU: its parts under Triton's interpreter, its processes when they die, its coins and times."""

import argparse
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import measure, plot
from benchmarks.gpu import capture_order, cases, correct, explore_rate, kit, ops, summary
from benchmarks.gpu.explore_rate import bench_coins
from benchmarks.gpu.scenarios import SCENARIOS, Size, without_lse
from benchmarks.gpu.whole_step import WholeStep
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.ops import LedRows, StepInputs, uniforms
from led_sglang.ops.backends import lm_head as head
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.types import RowInputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
# A GPU host has torch and triton; the kit's step parts need nothing of these.
BLOCKED = ("sglang", "httpx", "psutil", "openai", "fastapi", "transformers", "numba", "pydantic", "orjson", "datasets")

BLOCK = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}: blocked", name=name)

sys.meta_path.insert(0, Finder())
"""


def run_kit(out: Path, *arguments: str, blocked: tuple[str, ...] = ()) -> tuple[list[dict[str, Any]], str, int]:
    """Lines, what was printed and exit status of a dry run; importing what is blocked raises."""
    (out / "site").mkdir(parents=True)
    (out / "site" / "sitecustomize.py").write_text(BLOCK.replace("NAMES", repr(blocked)))
    paths = os.pathsep.join([str(out / "site"), str(ROOT)])
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--out", str(out), "--dry-run", *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert (out / "lines.jsonl").exists(), done.stderr
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    return lines, done.stdout, done.returncode


def results(lines: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["part"] == part and line["kind"] != "part"]


@pytest.mark.timeout(300)
def test_every_part_runs_with_torch_and_triton_alone(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    units = [
        "bfloat16/everything",
        "kernel/inputs",
        "kernel/one_pass_rows",
        "boundary",
        "ceilings",
        "rows_1",
        "rows_1/*",
    ]
    arguments = ["--units", *units, "--rows", "1", "--explore-rate", "1", "--commit", "abc1234"]
    lines, printed, status = run_kit(tmp_path, *arguments, blocked=BLOCKED)
    assert status == 0, printed + (tmp_path / "log.txt").read_text()[-3000:]
    assert "numba is not used" in (tmp_path / "log.txt").read_text(), "its stand-in served"
    checks = results(lines, "correct")
    assert len(checks) == 2 * 2 + 2 and all(line["ok"] for line in checks)
    assert [line["what"] for line in results(lines, "capture_order")] == ["captures", "replays"]
    timed = {line["run"]: line for line in results(lines, "ops") if line["kind"] == "time"}
    assert {"product", "naive", "step_two_pass", "step_one_pass", "one_pass_fused"} <= set(timed)
    for line in timed.values():
        assert (
            line["timed_by"] == "host clock" and line["ms"] > 0 and line["host_us"] > 0 and line["explored_rows"] == 1
        )
    kernels = [line for line in results(lines, "ops") if line["kind"] == "kernels"]
    assert [line["run"] for line in kernels] == ["step_two_pass", "step_one_pass"] and kernels[0]["kernels"]
    assert len(results(lines, "tiles")) == 8
    for line in lines:
        if line["kind"] != "part":
            named = ("device", "driver", "torch", "triton", "python", "commit", "date", "dry_run")
            assert set(named) <= set(line) and line["commit"] == "abc1234"
    assert "Nothing failed." in printed and (tmp_path / "summary.md").read_text() in printed
    assert summary.crossover(lines) is not None


BROKEN = """
import os, signal, sys, time

def line(**fields):
    yield {"kind": "time", **fields}

def raises():
    yield {"value": "before"}
    raise ValueError("on purpose")

def is_killed():
    os.kill(os.getpid(), signal.SIGSEGV)
    yield {}

def hangs():
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    yield {"child": child.pid}
    time.sleep(600)

def units(args):
    kinds = {"raises": raises, "is_killed": is_killed, "hangs": hangs}
    return {"first": lambda: line(n=1), KIND: kinds[KIND], "last": lambda: line(n=2)}
"""


@pytest.mark.parametrize("kind", ["raises", "is_killed", "hangs"])
def test_a_unit_that_dies_loses_nothing_else(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own part and in the next one."""
    for name, text in (("broken", BROKEN.replace("KIND", repr(kind))), ("fine", BROKEN.replace("KIND", "'first'"))):
        fine = text.replace("kinds['first']", "lambda: line(n=1)")
        (tmp_path / f"{name}_part.py").write_text(fine)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    is_hung = kind == "hangs"
    limit_s = 40.0 if is_hung else 120.0
    parts = [kit.Part("broken", "broken_part", limit_s), kit.Part("fine", "fine_part", 120.0)]
    args = kit.parse_args(["--out", str(tmp_path / "out"), "--dry-run"])
    assert kit.run(parts, args) == 1
    lines = summary.read(tmp_path / "out" / "lines.jsonl")
    broken, fine = results(lines, "broken"), results(lines, "fine")
    assert [line["n"] for line in fine] == [1, 2]
    assert broken[0]["n"] == 1 and (is_hung or broken[-1]["n"] == 2), "what is left of a part is run after a death"
    (fault,) = (line for line in broken if line["kind"] == "fault")
    assert fault["unit"] == kind
    expected = {"raises": "ValueError: on purpose", "is_killed": "signal 11 (SIGSEGV)"}.get(kind, "took longer than")
    assert expected in fault["error"]
    assert {"raises": "raise ValueError", "is_killed": "in is_killed"}.get(kind, f"in {kind}") in fault["traceback"]
    assert f"FAILED broken/{kind}" in (tmp_path / "out" / "summary.md").read_text()
    for line in broken:
        if "child" in line:
            state = Path(f"/proc/{line['child']}/stat")
            assert not state.exists() or state.read_text().split()[2] == "Z", "a child of a hung part outlives it"


def test_a_part_that_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    args = kit.parse_args(["--out", str(tmp_path), "--dry-run"])
    assert kit.run([kit.Part("gone", "no_such_module", 60.0), kit.Part("late", "no_such_module", 0.0)], args) == 1
    faults = [line for line in summary.read(tmp_path / "lines.jsonl") if line["kind"] == "fault"]
    assert "No module named 'no_such_module'" in faults[0]["traceback"] and "exited with 1" in faults[0]["error"]
    assert faults[1]["error"] == "no time is left; no unit was run"


def test_a_line_that_was_cut_off_does_not_hide_the_next(tmp_path: Path) -> None:
    folder = kit.Folder(tmp_path)
    folder.lines.write_text('{"part": "a", "kind": "time"}\n{"part": "a", "ki')
    folder.mend()
    kit.append(folder.lines, {"part": "b", "kind": "time"})
    found = summary.read(folder.lines)
    assert [line["kind"] for line in found] == ["time", "fault", "time"] and found[-1]["part"] == "b"


def test_bad_arguments_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "--out"),
        (["--out", "x", "--minutes", "0"], "at least 0.2"),
        (["--out", "x", "--rows", "0"], "at least 1"),
        (["--out", "x", "--explore-rate", "2"], "0 to 1"),
    ):
        with pytest.raises(SystemExit):
            kit.parse_args(arguments)
        assert message in capsys.readouterr().err


def within(share: float, probability: float, count: int) -> bool:
    """Five standard deviations."""
    return abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / count) + 1e-12


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_a_bench_step_has_the_one_pass_rows_of_production(rate: float) -> None:
    """Coins of 0 and 1 let a tenth of the rows through the head, where production lets four fifths."""
    count, cut = 20000, one_pass.COIN_THRESHOLD
    seeds = torch.arange(count)
    uniform = uniforms(seeds, seeds * 0, seeds * 0 + 7)[0]
    coin_uniform, one_pass_uniform = bench_coins(uniform, rate)
    assert coin_uniform.dtype == one_pass_uniform.dtype == torch.float64, "another type would compile other kernels"
    for confidence in (1e-3, 0.5, 1.0):  # whatever the model says
        explored = coin_uniform < 1 - confidence
        assert within(explored.double().mean().item(), rate, count)
    inputs = StepInputs(seeds >= 0, one_pass_uniform, uniform)
    mask = one_pass.one_pass_mask(LedRows.uniform(count), inputs, cut)
    assert within(mask.double().mean().item(), cut + (1 - cut) * rate, count)
    assert bool(mask[explored].all()), "a row that explores went through the head in the one pass"
    above = uniform >= cut
    assert within(explored[above].double().mean().item(), rate, int(above.sum())), "the two are independent"


def test_the_plugin_changes_the_coins_and_keeps_the_uniforms_of_the_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from led_sglang.integration.scheduler.latents.one_pass import OnePassState
    from led_sglang.integration.scheduler.runtime import Runtime

    for target, hook in ((Runtime.row_inputs, explore_rate.toss), (OnePassState.fill_mask, explore_rate.keep_uniform)):
        assert len(inspect.signature(target).parameters) >= 3 and callable(hook)
    monkeypatch.setenv(explore_rate.RATE, "0.3")
    columns = [torch.linspace(0, 0.99, 50, dtype=torch.float64) for _ in range(2)]
    before = RowInputs(torch.ones(50, dtype=torch.bool), *columns, *[torch.arange(50)] * 4)
    changed = explore_rate.toss(before, None, None, None)
    assert set(changed.coin_uniform.tolist()) == {-1.0, 1.0}
    (_, _, inputs, num_rows), _ = explore_rate.keep_uniform(None, None, changed, 50)
    explores = changed.coin_uniform < 0
    assert num_rows == 50
    assert torch.equal(inputs.coin_uniform, torch.where(explores, changed.coin_uniform, before.coin_uniform))


@pytest.mark.parametrize("num_rows", [1, 8, 48, 256])
def test_coins_of_the_kit(num_rows: int) -> None:
    for num_exploring in {0, num_rows // 10, num_rows}:
        coin_uniform, uniform = cases.spread_coins(num_rows, num_exploring)
        rate = num_exploring / num_rows
        inputs = StepInputs(uniform >= 0, uniform, uniform)
        mask = one_pass.one_pass_mask(LedRows.uniform(num_rows), inputs, one_pass.COIN_THRESHOLD)
        assert int((coin_uniform < 0).sum()) == num_exploring and bool(mask[coin_uniform < 0].all())
        expected = one_pass.COIN_THRESHOLD + (1 - one_pass.COIN_THRESHOLD) * rate
        assert abs(mask.double().mean().item() - expected) <= 1.5 / num_rows + 5 * math.sqrt(0.16 * rate / num_rows)
    with pytest.raises(ValueError, match="5 exploring rows of 4"):
        cases.spread_coins(4, 5)


def test_a_step_of_the_kit_has_the_one_pass_rows_of_production() -> None:
    """What is timed, by the kernels' threshold: torch's fixed shapes leave no row out."""
    case = cases.make_case(cases.make_head(97, 16, torch.float32, CPU), 250, 3, 25)
    step = WholeStep(case, "torch")
    step.backend = TorchBackend(allows_dynamic_shapes=True)
    step.begin()
    assert int(step.mask.sum()) == case.one_pass_rows() and 200 <= case.one_pass_rows() <= 210


def test_rows_are_left_to_the_second_pass() -> None:
    """Some of the rows that explore have their log-sum-exp from the one pass, and some have not."""
    for size in (Size(3, 101, 32, 3), Size(17, 101, 32, 8)):
        lm_head = cases.make_head(size.vocab, size.hidden, torch.float32, CPU)
        for make in (without_lse, SCENARIOS["everything"]):
            case = make(lm_head, size)
            mask = one_pass.one_pass_mask(case.rows, case.mask_inputs, one_pass.COIN_THRESHOLD)
            explores = (case.inputs.coin_uniform < 0) & case.inputs.active & (case.rows.depth > 1)
            assert bool((explores & mask).any() and (explores & ~mask).any()), (make, size)


def test_small_batches_are_measured_with_and_without_a_row_that_explores() -> None:
    assert ops.exploring_counts(1, 0.1) == [1, 0] and ops.exploring_counts(8, 0.1) == [1, 0]
    assert ops.exploring_counts(48, 0.1) == [5] and ops.exploring_counts(256, 0.1) == [26]
    assert ops.exploring_counts(8, 0.0) == [0] and ops.exploring_counts(8, 1.0) == [8]


def ops_lines(times: dict[tuple[int, int, str], float]) -> list[dict[str, Any]]:
    return [
        {"part": "ops", "kind": "time", "rows": n, "explored_rows": k, "run": run, "ms": ms, "explore_rate": 0.1}
        for (n, k, run), ms in times.items()
    ]


def test_the_summary_weighs_the_two_kinds_of_steps_and_finds_the_crossover() -> None:
    lines = ops_lines(
        {
            **{(1, k, "product"): 0.2 for k in (0, 1)},
            (1, 0, "step_two_pass"): 0.05,
            (1, 1, "step_two_pass"): 0.25,
            **{(1, k, "step_one_pass"): 0.26 for k in (0, 1)},
            (48, 5, "product"): 0.2,
            (48, 5, "step_two_pass"): 0.3,
            (48, 5, "step_one_pass"): 0.45,
            (64, 6, "product"): 0.2,
            (64, 6, "step_two_pass"): 0.4,
            (64, 6, "step_one_pass"): 0.7,
        }
    )
    added = summary.added_ms(lines)
    assert added[1, "two_pass"] == pytest.approx(0.9 * 0.05 + 0.1 * 0.25)
    assert added[1, "one_pass"] == pytest.approx(0.06) and added[48, "one_pass"] == pytest.approx(0.25)
    assert summary.crossover(lines) == (48, 64)
    lines.append({"part": "ops", "kind": "ceilings", "bytes_per_s": 4.3e12, "flops": 8e14})
    assert 1.7 < summary.step_floor_ms(1, 4.3e12) < 2.1  # 8 GB of weights
    assert "| 1 | 70 | 60 |" in summary.render(lines) and "up to 48 rows, dearer at 64" in summary.render(lines)


def test_a_run_that_raises_leaves_the_other_times() -> None:
    faults: list[str] = []

    def broken() -> None:
        raise RuntimeError("does not fit")

    runs: dict[str, measure.Run] = {"broken": broken, "fine": lambda: torch.zeros(8).sum()}
    times = measure.measure_runs(runs, CPU, 5, lambda name, error: faults.append(f"{name}: {error}"))
    assert faults == ["broken: does not fit"] and list(times) == ["fine"]
    line = times["fine"].line()
    assert line["n"] == 5 and 0 < line["ms_q1"] <= line["ms"] <= line["ms_q3"] and line["timed_by"] == "host clock"
    with pytest.raises(RuntimeError, match="does not fit"):
        measure.measure_runs({"broken": broken}, CPU, 1)


def test_an_error_of_a_factor_of_two_is_outside_the_budget() -> None:
    size = Size(17, 101, 32, 8)
    case = SCENARIOS["plain"](cases.make_head(size.vocab, size.hidden, torch.bfloat16, CPU), size)
    truth, found = correct.reference(case), case.step("fused")
    assert correct.line(found, truth, case, torch.bfloat16)["ok"]
    with pytest.MonkeyPatch.context() as patch:  # a log-sum-exp over half of the vocabulary
        real = head.latent_lse
        patch.setattr(head, "tile_width", lambda *_: 64)
        patch.setattr(head, "latent_lse", lambda *a, **k: real(*a, **k) - math.log(2))
        line = correct.line(case.step("fused"), truth, case, torch.bfloat16)
    assert not line["ok"] and line["error"] > correct.BUDGET[torch.bfloat16]
    flipped = correct.line(replace(found, explored=~found.explored), truth, case, torch.bfloat16)
    assert not flipped["ok"] and flipped["wrong"] == "explored"
    broken = correct.line(replace(found, confidence=found.confidence * torch.nan), truth, case, torch.bfloat16)
    assert not broken["ok"] and broken["error"] == math.inf


@pytest.mark.parametrize("is_padded", [True, False])
def test_a_form_that_changes_between_warm_up_and_capture_is_reported(
    is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_order, "forward_of", lambda *_: torch.zeros(1))
    monkeypatch.setattr(capture_order, "replayed", lambda *_: 0.0)
    args = SimpleNamespace(device=CPU, dry_run=True)
    sizes = capture_order.decode_graph_sizes(64, is_padded)
    captures, _ = capture_order.check(sizes, args)  # type: ignore[arg-type]
    assert captures["ok"] and 0 < captures["largest_one_pass"] <= one_pass.MAX_ROWS

    def by_the_next_graph(self: OnePassState, num_rows: int, is_captured: bool) -> None:
        if is_captured:
            self.graph_sizes = sorted([*self.graph_sizes, num_rows])
        self.is_one_pass = self.form(num_rows) == "one_pass"

    monkeypatch.setattr(OnePassState, "on_graph_warmup", by_the_next_graph)
    captures, _ = capture_order.check(sizes, args)  # type: ignore[arg-type]
    assert not captures["ok"]
    changed = max(size for size in sizes if size <= one_pass.MAX_ROWS)  # the next graph is beyond the limit
    assert captures["changed"] == {str(changed): [False, False, True]}


def test_graph_sizes_are_those_of_the_engine() -> None:
    from sglang.srt.arg_groups.cuda_graph_hook import generate_decode_cuda_graph_batch_sizes

    for is_padded in (True, False):
        engine = SimpleNamespace(disable_cuda_graph_padding=not is_padded, speculative_algorithm=None)
        for max_rows in (8, 51, 64, 256, 300):
            expected = generate_decode_cuda_graph_batch_sizes(engine, max_rows)
            assert capture_order.decode_graph_sizes(max_rows, is_padded) == sorted(expected)


class FakeGpu:
    """What `measure.GraphSampler` asks of torch.cuda: a clock that moves by `replay_ms` with each replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replay_ms: float) -> None:
        self.now, self.is_capturing, self.num_replays = 0.0, False, 0
        gpu = self

        class Graph:
            def replay(self) -> None:
                gpu.now, gpu.num_replays = gpu.now + replay_ms, gpu.num_replays + 1

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        class Stream:
            def __init__(self, device: torch.device) -> None: ...

            def wait_stream(self, other: "Stream") -> None: ...

        @contextmanager
        def graph(captured: Graph, stream: Stream) -> Iterator[None]:
            assert isinstance(captured, Graph) and isinstance(stream, Stream)
            self.is_capturing = True
            yield
            self.is_capturing = False

        fakes = {
            "CUDAGraph": Graph,
            "Event": Event,
            "Stream": Stream,
            "graph": graph,
            "stream": lambda _: nullcontext(),
        }
        for name, fake in (fakes | {"current_stream": Stream, "synchronize": lambda _: None}).items():
            monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("replay_ms", [0.02, 5.0])
def test_a_gpu_times_replays_of_a_graph_not_calls(replay_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, calls = FakeGpu(monkeypatch, replay_ms), []
    times = measure.measure_runs({"run": lambda: calls.append(gpu.is_capturing)}, torch.device("cuda"), 6)["run"]
    assert calls.count(True) == 1 and calls[-1], "captured once, after the warm-ups, and never called again"
    assert calls.count(False) == measure.NUM_WARM_UPS + measure.NUM_HOST_CALLS + 1
    line = times.line()
    assert line["ms"] == pytest.approx(replay_ms) and line["n"] == 6 and "graph replays" in line["timed_by"]
    assert 0 < line["host_us"] < 1e5 and len(times.host_ms) == measure.NUM_HOST_CALLS
    assert gpu.num_replays == 2 + 6 * round(max(1.0, measure.MIN_SAMPLE_MS / replay_ms))


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"kind": "time", "explored_rows": 1, "explore_rate": 0.1}
    ops_times = [
        {"part": "ops", **about, "rows": n, "run": run, "ms": ms * n}
        for n in (1, 8, 64)
        for run, ms in (("naive", 2.0), ("step_two_pass", 0.1))
    ]
    server = [
        {"part": "server", "mode": m, "rows": n, "step_ms": 2.0 + (m != "off")}
        for m in ("off", "auto")
        for n in (1, 64)
    ]
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*ops_times, *server]))
    assert plot.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ops.svg").read_text().count("<polyline") == 2
    assert "1.5" in (tmp_path / "out" / "server.svg").read_text()
    assert plot.main(["--results", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 1
    assert "run benchmarks/gpu or benchmarks.speculation first" in capsys.readouterr().err


def test_units_that_match_nothing_are_a_fault(tmp_path: Path) -> None:
    lines, _, status = run_kit(tmp_path / "out", "--parts", "tiles", "--units", "tyle*")
    assert status == 1 and ["tyle*" in line["error"] for line in lines if line["kind"] == "fault"] == [True]


def test_lines_of_another_run_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="another --out"):
        kit.run([], kit.parse_args(["--out", str(tmp_path), "--dry-run"]))
    assert (tmp_path / "lines.jsonl").read_text() == "{}\n"


def test_a_fault_of_the_profiler_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(device=torch.device("cpu"), dry_run=True)
    for found in (lambda *_: [], lambda *_: 1 / 0):
        monkeypatch.setattr(ops, "kernel_times", found)
        assert ops.kernels_line("step", lambda: None, args)["kind"] == "fault"
