"""Time and peak memory of one call, and the ceilings of the machine it ran on."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Run = Callable[[], object]
MIN_SAMPLE_MS = 1.0  # of replays between two events: their own cost is some microseconds
NUM_WARM_UPS = 3
NUM_HOST_CALLS = 20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_ms(run: Run, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def interleaved_median_ms(runs: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """The runs take turns, so that a busy neighbour slows all of them; one round of warming up is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repeats + 1):
        for name, run in runs.items():
            elapsed = time_ms(run, device)
            if round_number:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


@dataclass
class Times:
    """What one run took."""

    timed_by: str
    samples_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)  # of Python and its launches, without waiting for the device

    def line(self) -> dict[str, Any]:
        """Median, quartiles and count, as a line of results says them; host times in microseconds."""
        low, middle, high = _quartiles(self.samples_ms)
        host_low, host, host_high = (1e3 * value for value in _quartiles(self.host_ms))
        return {
            "ms": round(middle, 5),
            "ms_q1": round(low, 5),
            "ms_q3": round(high, 5),
            "n": len(self.samples_ms),
            "timed_by": self.timed_by,
            "host_us": round(host, 1),
            "host_us_q1": round(host_low, 1),
            "host_us_q3": round(host_high, 1),
        }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Sampler(Protocol):
    """One run, made ready to be timed."""

    timed_by: str

    def sample_ms(self) -> float: ...


class GraphSampler:
    """A run captured in a CUDA graph, its replays timed by CUDA events. Raises what the capture raises."""

    timed_by = "events around CUDA graph replays"

    def __init__(self, run: Run, device: torch.device) -> None:
        self._graph, self._num_replays = torch.cuda.CUDAGraph(), 1
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run()  # on the side stream, as the capture: libraries keep workspaces by stream
        torch.cuda.current_stream(device).wait_stream(side)
        synchronize(device)
        with torch.cuda.graph(self._graph, stream=side):
            self._result = run()  # alive as long as the graph: its memory is the graph's
        self.sample_ms()
        self._num_replays = max(1, min(100, round(MIN_SAMPLE_MS / max(self.sample_ms(), 1e-3))))

    def sample_ms(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self._num_replays):
            self._graph.replay()
        end.record()
        end.synchronize()
        elapsed: float = start.elapsed_time(end)
        return elapsed / self._num_replays


class HostSampler:
    """A run on a device whose calls return when their work is done."""

    timed_by = "host clock"

    def __init__(self, run: Run, device: torch.device) -> None:
        self._run, self._device = run, device

    def sample_ms(self) -> float:
        return time_ms(self._run, self._device)


def sampler_of(run: Run, device: torch.device) -> Sampler:
    return GraphSampler(run, device) if device.type == "cuda" else HostSampler(run, device)


def host_time_ms(run: Run, device: torch.device, num_calls: int) -> list[float]:
    """Python and launches of single calls, before each of which the device is idle."""
    times = []
    for _ in range(num_calls):
        synchronize(device)
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    synchronize(device)
    return times


def measure_runs(
    runs: dict[str, Run], device: torch.device, repeats: int, on_fault: Callable[[str, Exception], None] | None = None
) -> dict[str, Times]:
    """Device and host time of each run; the runs take turns.

    A run that raises is left out and `on_fault(name, error)` is called where it is given, else the error is raised.
    """
    samplers: dict[str, Sampler] = {}
    times: dict[str, Times] = {}
    for name, run in runs.items():
        try:
            for _ in range(NUM_WARM_UPS if device.type == "cuda" else 0):
                run()
            host_ms = host_time_ms(run, device, NUM_HOST_CALLS if device.type == "cuda" else 1)
            samplers[name] = sampler_of(run, device)
            times[name] = Times(samplers[name].timed_by, [], host_ms)
        except Exception as error:
            if on_fault is None:
                raise
            on_fault(name, error)
    for _ in range(repeats):
        for name, sampler in samplers.items():
            times[name].samples_ms.append(sampler.sample_ms())
    return times


def kernel_times(run: Run, device: torch.device, num_steps: int) -> list[dict[str, Any]]:
    """By torch.profiler: calls and microseconds of each kernel in one step, longest first; on a CPU of each operator.

    The run must be warm.
    """
    is_cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if is_cuda else torch.profiler.ProfilerActivity.CPU]
    synchronize(device)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(num_steps):
            run()
        synchronize(device)
    found = []
    for event in profile.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        if on_device == is_cuda and micros > 0:
            name = event.key if len(event.key) <= 80 else event.key[:77] + "..."
            found.append(
                {"kernel": name, "us": round(micros / num_steps, 2), "calls": round(event.count / num_steps, 2)}
            )
    return sorted(found, key=lambda one: -one["us"])


def peak_extra_mib(run: Run, device: torch.device) -> float:
    """The most tensor memory alive at once beyond what lived before the call.

    CUDA: the caching allocator's own peak. CPU: every allocation and release that torch's allocator reports to the
    profiler, summed in order of time; scratch memory inside the matrix library is not a tensor and is not seen.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak / 2**20


def peak_flops(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Operations a second of a square matrix product: what a perfect head pass could reach here."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / (min(time_ms(lambda: a @ b, device) for _ in range(4)) * 1e-3)


def peak_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second of reading a large tensor once."""
    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / (min(time_ms(values.sum, device) for _ in range(4)) * 1e-3)
