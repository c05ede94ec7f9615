"""Microseconds of a launch and of a step: slowest of pipes, memory and the chain of one warp, and the gap before it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Any

from benchmarks.gpu.cost import device
from benchmarks.gpu.cost.models import SHARE, Model
from benchmarks.gpu.cost.plan import KernelLaunch, Plan, Scenario, TorchCall, plan_of
from benchmarks.gpu.cost.sass import Code, Run
from benchmarks.gpu.cost.work import EXPLORE_RATE, ONE_PASS_RATE, Rows, Work, ceil, work_of

NEGLIGIBLE = 1e-4  # numbers of exploring rows less likely than this are left out
NUM_LARGEST = 6


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its code, and how many of its blocks an SM holds."""

    code: Code
    num_warps: int
    resident: int

    @cache  # noqa: B019, kernels stay for as long as the process
    def path(self, trips: tuple[int, ...]) -> Run:
        return self.code.path(self.num_warps, trips)

    @cache  # noqa: B019
    def early_exit(self) -> Run:
        return self.code.early_exit(self.num_warps)


_kernels: dict[str, Kernel] = {}


def kernel_of(binary: Any) -> Kernel:
    if binary.hash not in _kernels:
        code, warps = Code(binary.asm["cubin"]), binary.metadata.num_warps
        registers = ceil(code.num_registers, 8) * 8 * 32 * warps
        fits = (
            device.NUM_REGISTERS // registers,
            device.SHARED_BYTES // (binary.metadata.shared + device.RESERVED_BYTES),
            device.NUM_WARPS // warps,
            device.NUM_BLOCKS,
        )
        _kernels[binary.hash] = Kernel(code, warps, max(1, min(fits)))
    return _kernels[binary.hash]


def kernel_us(launch: KernelLaunch, work: Work) -> float:
    """Without the gap before it."""
    kernel = kernel_of(launch.binary)
    seconds = _cycles(kernel, work, launch) / device.CLOCK_HZ
    return 1e6 * seconds


def _cycles(kernel: Kernel, work: Work, launch: KernelLaunch) -> float:
    path = kernel.path(work.trips)
    early = kernel.early_exit() if work.idle_trips is None else kernel.path(work.idle_trips)
    per_sm, idle_per_sm = ceil(work.programs, device.NUM_SMS), ceil(launch.num_programs - work.programs, device.NUM_SMS)
    rounds, idle_rounds = ceil(per_sm, kernel.resident), ceil(idle_per_sm, kernel.resident)
    idle = max(idle_rounds * early.latency, idle_per_sm * max(early.busy_cycles(kernel.num_warps).values()))
    if not work.programs:
        return idle
    busy = per_sm * max(path.busy_cycles(kernel.num_warps).values())
    return max(busy, rounds * path.latency, _memory_cycles(kernel, work, rounds)) + idle


def _memory_cycles(kernel: Kernel, work: Work, rounds: int) -> float:
    """What is before and behind a block's innermost loop loads little, and is exposed where few blocks are resident."""
    is_cached = work.memory_bytes <= device.L2_BYTES
    seconds = max(
        work.memory_bytes / (device.L2_BYTES_PER_S if is_cached else device.DRAM_BYTES_PER_S),
        work.cache_bytes / device.L2_BYTES_PER_S,
    )
    exposed = 0.0
    if work.trips:
        exposed = rounds * kernel.path((*work.trips[:-1], 0)).latency / kernel.resident
    return seconds * device.CLOCK_HZ + exposed


def torch_us(call: TorchCall) -> float:
    """A kernel a call or more, each of which reads and writes what it moves."""
    is_cached = call.num_bytes <= device.L2_BYTES
    bytes_per_s = device.L2_BYTES_PER_S if is_cached else device.DRAM_BYTES_PER_S
    floor = device.GLOBAL_LATENCY / device.CLOCK_HZ
    return 1e6 * (call.num_kernels * floor + call.num_bytes / bytes_per_s)


def engine_product_us(scenario: Scenario) -> float:
    """Of the engine's own product with the head, which the one-pass form replaces."""
    model, tp = scenario.model, scenario.tp
    weight = 2 * model.vocab // tp * model.hidden
    operations = scenario.num_rows * weight / (device.MATRIX_MULTIPLY_ADDS * device.NUM_SMS * device.MATRIX_SHARE * 2)
    return 1e6 * max(weight / device.DRAM_BYTES_PER_S, operations / device.CLOCK_HZ)


def gaps_us(is_in_graph: bool, num_kernels: int = 1) -> float:
    return num_kernels * (device.NODE_US if is_in_graph else device.LAUNCH_US)


def likely_counts(num_rows: int, rate: float) -> dict[int, float]:
    """How likely so many of the rows are picked, each by itself."""
    shares = {n: comb(num_rows, n) * rate**n * (1 - rate) ** (num_rows - n) for n in range(num_rows + 1)}
    likely = {n: share for n, share in shares.items() if share >= NEGLIGIBLE}
    return {n: share / sum(likely.values()) for n, share in likely.items()}


def likely_rows(scenario: Scenario) -> Iterator[tuple[float, Rows]]:
    """What the coins say, and how likely. Rows of the one pass that explore are in it: hardly one is not."""
    for explored, share in likely_counts(scenario.num_rows, EXPLORE_RATE).items():
        if scenario.form != "one_pass":
            yield share, Rows(explored, 0, explored)
            continue
        for one_pass, chance in likely_counts(scenario.num_rows, ONE_PASS_RATE).items():
            yield share * chance, Rows(explored, one_pass, 0)


def step_us(scenario: Scenario, plan: Plan) -> dict[str, float]:
    """Mean GPU microseconds of one step, by kernel."""
    named: Counter[str] = Counter()
    for launch in plan.launches:
        chances: Counter[Work] = Counter()
        for share, rows in likely_rows(scenario):
            chances[work_of(launch, rows)] += share  # type: ignore[assignment]
        us = sum(share * kernel_us(launch, work) for work, share in chances.items()) + gaps_us(launch.is_in_graph)
        if launch.kernel == "head_kernel" and launch.is_in_graph:
            us -= engine_product_us(scenario) + gaps_us(True)
        named[launch.kernel] += us  # type: ignore[assignment]
    for call in plan.calls:
        us = torch_us(call) + gaps_us(call.is_in_graph, call.num_kernels)
        named[f"torch.{call.name}"] += us  # type: ignore[assignment]
    if plan.num_collectives:
        named["collective"] = plan.num_collectives * (device.COLLECTIVE_US + device.LAUNCH_US)
    return named


def host_us(plan: Plan) -> float:
    """Of Python and the driver, outside the engine's graph."""
    launches = sum(not launch.is_in_graph for launch in plan.launches)
    calls = [call for call in plan.calls if not call.is_in_graph]
    found = launches * (device.HOST_TRITON_US + device.HOST_DRIVER_US)
    found += sum(device.HOST_TORCH_US + call.num_kernels * device.HOST_DRIVER_US for call in calls)
    return found + plan.num_allocations * device.HOST_TORCH_US + plan.num_collectives * device.HOST_COLLECTIVE_US


def line_of(scenario: Scenario) -> dict[str, Any]:
    """What issue 22 states."""
    plan = plan_of(scenario)
    named = step_us(scenario, plan)
    gpu, budget = sum(named.values()), scenario.model.budget_us(scenario.num_requests, scenario.tp)
    largest = sorted(named.items(), key=lambda item: -item[1])[:NUM_LARGEST]
    return {
        "model": scenario.model.name,
        "rows": scenario.num_requests,
        "form": scenario.name,
        "tp": scenario.tp,
        "gpu_us": round(gpu, 1),
        "host_us": round(host_us(plan), 1),
        "budget_us": round(budget, 1),
        "share": round(SHARE * gpu / budget, 4),
        "largest": [[name, round(us, 1)] for name, us in largest],
    }


def crossing(model: Model, most: int = 64, head_lse: str = "full") -> int:
    """The largest batch, of up to so many rows, at which one pass is not the dearer form; 0: there is none."""
    for rows in range(most, 0, -1):
        one_pass, coin_first = (Scenario(model, rows, form, head_lse=head_lse) for form in ("one_pass", "coin_first"))
        if _total(one_pass) <= _total(coin_first):
            return rows
    return 0


def _total(scenario: Scenario) -> float:
    return sum(step_us(scenario, plan_of(scenario)).values())
