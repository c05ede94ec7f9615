"""Time and peak memory of one call, and the ceilings of the machine it ran on."""

import statistics
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]


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
