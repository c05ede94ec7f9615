"""LED's numbers on SGLang's own /metrics: the scheduler's counters, asked for by each scrape and by nothing else."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from starlette.types import Receive, Scope, Send

from led_sglang.config.server import server_config
from led_sglang.integration.http import info
from led_sglang.integration.http.responses import ANSWERS

logger = logging.getLogger(__name__)
PREFIX = "led_sglang_"
PATIENCE_S = 5.0  # below Prometheus' own ten seconds: a scheduler that is busy costs LED's numbers, not all


class LedCollector:
    """Of prometheus_client's kind: counters as in /led/info, every label there from the start."""

    def __init__(self, counters: Mapping[str, Any], methods: tuple[str, ...]) -> None:
        self._counters = counters
        self._methods = methods

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        counters = self._counters

        def counter(name: str, text: str, key: str) -> Any:
            return CounterMetricFamily(PREFIX + name, text, value=counters[key])

        def labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Any:
            family = CounterMetricFamily(PREFIX + name, text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            return family

        def histogram(name: str, text: str, values: Mapping[str, int], total: int | None) -> Any:
            family = HistogramMetricFamily(PREFIX + name, text)
            family.add_metric([], list(zip(values, accumulate(values.values()), strict=True)), total)
            return family

        yield counter("tokens", "Tokens decided by the LED step.", "led_tokens")
        yield counter("thinking_tokens", "Tokens of LED requests inside the thinking phase.", "thinking_tokens")
        yield counter("explored_tokens", "Tokens sampled from the explore branch.", "explored_tokens")
        reasons = counters["fallback_reasons"]
        yield labelled("fallbacks", "LED tokens replaced by the engine's own, by reason.", "reason", reasons)
        text = "Requests refused because no front end has read their LED parameters."
        yield counter("unresolved_requests", text, "unresolved_requests")
        tokens = {method: counters["tokens"][method] for method in self._methods}
        yield labelled("rows", "Generated tokens of requests, by decoding method.", "method", tokens)
        answers = {method: counters["requests"].get(method, 0) for method in self._methods}
        yield labelled("requests", "Requests that were answered, by decoding method.", "method", answers)

        depths = counters["depth_histogram"]
        buckets = {str(float(depth)): count for depth, count in depths.items()} | {"+Inf": 0}
        total = sum(int(depth) * count for depth, count in depths.items())
        yield histogram("explore_depth", "Depth of maximum entropy of explored tokens.", buckets, total)
        sure = counters["confidence_histogram"]  # without a sum: the values are gone
        yield histogram("confidence", "Largest probability of the final layer, LED tokens.", sure, None)


class Metrics:
    """What SGLang mounts at /metrics, with LED's numbers."""

    def __init__(self) -> None:
        self._pending: asyncio.Task[dict[str, Any]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        counters = await self._counters()
        config = server_config()
        if counters and config is not None:
            methods = ("led", *(method for method in config.methods if method != "led"), "none")
            registry.register(LedCollector({**counters, **ANSWERS.to_dict()}, methods))
        await make_asgi_app(registry=registry)(scope, receive, send)

    async def _counters(self) -> dict[str, Any]:
        """The scheduler's; empty, with a warning, where it does not answer in time.

        The question is never withdrawn, as SGLang would give its answer to the next one: late scrapes share it.
        """
        from sglang.srt.entrypoints.http_server import get_global_state

        state = get_global_state()
        if state is None:  # the server is still starting
            return {}
        if self._pending is None or self._pending.done():
            self._pending = asyncio.create_task(info.scheduler_status(state.tokenizer_manager))
        await asyncio.wait([self._pending], timeout=PATIENCE_S)
        if not self._pending.done():
            logger.warning("/metrics is without LED's numbers: the scheduler did not answer in %g s", PATIENCE_S)
            return {}
        try:
            return dict(self._pending.result()["counters"])
        except Exception:
            logger.exception("/metrics is without LED's numbers: the scheduler did not tell them")
            return {}


def attach() -> None:
    """Have SGLang's /metrics, where it is switched on, answer with its own and our numbers."""
    from sglang.srt.entrypoints import http_server

    original = http_server.add_prometheus_middleware

    def with_led(app: Any) -> None:
        original(app)
        mounts = [route for route in app.routes if getattr(route, "path", None) == "/metrics"]
        if mounts:
            mounts[-1].app = Metrics()
        else:  # a server without our numbers is better than none
            logger.error("LED's numbers could not be added to /metrics: SGLang did not mount it")

    http_server.add_prometheus_middleware = with_led
