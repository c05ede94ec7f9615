"""LED's numbers on SGLang's own /metrics, read from the process's counters when scraped.

They are counted as tokens are answered, from flags that travel with the step's own results: a counter on the device
would include the step that the overlap scheduler launches for a request that has just ended, and never equal a trace.
"""

import logging
from collections.abc import Iterator
from typing import Any

from led_sglang.integration.records import CONFIDENCE_BOUNDS, FALLBACK_REASONS
from led_sglang.integration.requests import COUNTERS, Counters
from led_sglang.params import server_config

logger = logging.getLogger(__name__)
PREFIX = "led_sglang_"


def families(counters: Counters, max_depth: int, methods: tuple[str, ...]) -> Iterator[Any]:
    """The metric families, every label present from the start."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    def counter(name: str, text: str, value: int) -> Any:
        return CounterMetricFamily(PREFIX + name, text, value=value)

    def labelled(name: str, text: str, label: str, values: dict[str, int]) -> Any:
        family = CounterMetricFamily(PREFIX + name, text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    yield counter("tokens", "Tokens decided by the LED step.", counters.num_tokens)
    yield counter("thinking_tokens", "Tokens of LED requests inside the thinking phase.", counters.num_thinking)
    yield counter("explored_tokens", "Tokens sampled from the explore branch.", counters.num_explored)
    reasons = {reason: counters.reasons[reason] for reason in FALLBACK_REASONS}
    yield labelled("fallbacks", "LED tokens replaced by the engine's own, by reason.", "reason", reasons)
    rows = {method: counters.rows[method] for method in methods}
    yield labelled("rows", "Generated tokens of requests, by decoding method.", "method", rows)
    requests = {method: counters.requests[method] for method in methods}
    yield labelled("requests", "Requests that were answered, by decoding method.", "method", requests)

    depths = [counters.depths[depth] for depth in range(1, max_depth + 1)]
    total = sum(depth * count for depth, count in enumerate(depths, start=1))
    depth = HistogramMetricFamily(PREFIX + "explore_depth", "Depth of maximum entropy of explored tokens.")
    depth.add_metric([], _cumulated(range(1, max_depth + 1), [*depths, 0]), total)
    yield depth
    buckets = [counters.confidences[i] for i in range(len(CONFIDENCE_BOUNDS) + 1)]
    confidence = HistogramMetricFamily(PREFIX + "confidence", "Largest probability of the final layer, LED tokens.")
    confidence.add_metric([], _cumulated(CONFIDENCE_BOUNDS, buckets), None)  # the values are gone: no sum
    yield confidence


def _cumulated(bounds: Any, counts: list[int]) -> list[tuple[str, float]]:
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return [(name, float(sum(counts[: i + 1]))) for i, name in enumerate(names)]


class LedCollector:
    """Of prometheus_client's kind."""

    def collect(self) -> Iterator[Any]:
        config = server_config()
        assert config is not None
        yield from families(COUNTERS, config.max_depth, ("led", *(m for m in _methods(config) if m != "led")))


def _methods(config: Any) -> tuple[str, ...]:
    return (*config.methods, "none")


def attach() -> None:
    """Have SGLang's /metrics, where it is switched on, answer with its own and our numbers."""
    from sglang.srt.entrypoints import http_server

    original = http_server.add_prometheus_middleware

    def with_led(app: Any) -> None:
        original(app)
        try:
            _extend(app)
        except Exception:  # a server without our numbers is better than none
            logger.exception("LED's numbers could not be added to /metrics")

    http_server.add_prometheus_middleware = with_led


def _extend(app: Any) -> None:
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    mounts = [route for route in app.routes if getattr(route, "path", None) == "/metrics"]
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    registry.register(LedCollector())
    mounts[-1].app = make_asgi_app(registry=registry)
