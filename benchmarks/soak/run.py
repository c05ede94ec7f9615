"""Phases of load, the state of the server between them, and the verdict."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.soak import audit, watch
from benchmarks.soak.clients import Outcome, run_phase
from benchmarks.soak.plan import OTHER_METHODS
from led_sglang.serving.child import Server

# A small pool of KV cache and an admission that hopes for short answers: long requests are retracted.
ARGUMENTS = (
    "--enable-metrics",
    "--max-total-tokens",
    "1024",
    "--max-running-requests",
    "64",
)
# SGLang hangs up after 5 s without a request. On a busy machine its event loop may be seconds late, and close a
# connection that has a request in it: here it never does.
ENVIRONMENT = {"SGLANG_INIT_NEW_TOKEN_RATIO": "0.05", "SGLANG_TIMEOUT_KEEP_ALIVE": "86400"}
MAX_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Bounds:
    """When a soak ends: at so many requests, if any, and at the latest after so many minutes."""

    minutes: float
    requests: int | None = None
    concurrencies: tuple[int, ...] = (256, 64)  # in turn, the larger first: it sets the mark of the memory
    num_phases: int = 10
    num_warm_phases: int = 4
    memory_growth: float = 0.02  # of the idle server's memory since warm-up
    seed: int = 1
    methods: tuple[str, ...] = OTHER_METHODS  # that the server has beside LED


def soak(server: Server, bounds: Bounds) -> dict[str, Any]:
    """Load the server and audit it. `faults` of the summary is empty if everything held."""
    watch.wait_idle(server.url)
    log_start = server.log.stat().st_size
    info, metrics = watch.counters(server.url), watch.metrics(server.url)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    rss = []
    for concurrency, numbers, deadline in phases(bounds, started):
        outcomes += asyncio.run(run_phase(server.url, concurrency, numbers, deadline, bounds.seed, bounds.methods))
        watch.wait_idle(server.url)
        rss.append(watch.rss_bytes(server.process.pid))
    seconds = time.monotonic() - started
    faults = audit.audit_endings(outcomes)
    faults += state_faults(server, outcomes, info, metrics)
    faults += [f"log: {line}" for line in watch.troubles(server.log, log_start)]
    growth = rss[-1] / rss[bounds.num_warm_phases - 1] - 1
    if growth > bounds.memory_growth:
        faults.append(f"memory grew by {growth:.1%} since warm-up: {[value >> 20 for value in rss]} MiB")
    if bounds.requests is not None and len(outcomes) < bounds.requests:
        faults.append(f"{len(outcomes)} requests of {bounds.requests} in {bounds.minutes} minutes")
    return {**summary(outcomes, seconds), "rss_mib": [v >> 20 for v in rss], "memory_growth": round(growth, 4)} | {
        "num_faults": len(faults),
        "faults": faults[:MAX_SHOWN_FAULTS],
    }


def phases(bounds: Bounds, started: float) -> Iterator[tuple[int, Iterator[int], float]]:
    """Concurrency, request numbers and deadline of each phase: equal shares of the requests, or of the time."""
    numbers = itertools.count()
    for phase in range(bounds.num_phases):
        concurrency = bounds.concurrencies[phase % len(bounds.concurrencies)]
        end = started + 60 * bounds.minutes
        if bounds.requests is None:
            yield concurrency, numbers, started + 60 * bounds.minutes * (phase + 1) / bounds.num_phases
        else:
            first, last = (bounds.requests * i // bounds.num_phases for i in (phase, phase + 1))
            yield concurrency, iter(range(first, last)), end


def state_faults(
    server: Server, outcomes: Sequence[Outcome], info: dict[str, Any], metrics: dict[str, float]
) -> list[str]:
    """The idle server's counters and pools against what the clients saw."""
    now = watch.metrics(server.url)
    rows, requests = (
        {m: n - audit.by_method(metrics, name).get(m, 0) for m, n in audit.by_method(now, name).items()}
        for name in ("rows", "requests")
    )
    faults = audit.audit_counters(outcomes, audit.growth(info, watch.counters(server.url)), rows, requests)
    for name in ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"):
        if now[name] > 0.005:
            faults.append(f"idle server: {name} is {now[name]}")
    return faults


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    endings = Counter(o.plan.ending for o in outcomes)
    metas = [meta for o in outcomes for meta in o.metas]
    return {
        "requests": len(outcomes),
        "seconds": round(seconds, 1),
        "requests_per_s": round(len(outcomes) / seconds, 1),
        "tokens": sum(o.num_tokens or 0 for o in outcomes),
        "lost": sum(bool(o.lost) for o in outcomes),
        "status_5xx": sum(o.status >= 500 for o in outcomes),
        "retractions": sum(meta.get("num_retractions", 0) for meta in metas),
        "traces_checked": sum(len(o.metas) for o in outcomes if o.plan.is_traced and o.plan.prompt_ids),
        "left_in_stream": endings["leave"],
        "aborted": endings["abort"],
        "refused": endings["refused"],
    }
