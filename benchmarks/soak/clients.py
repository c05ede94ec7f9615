"""Clients of a soak: each sends one planned request after the other and notes how it ended."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak.plan import GENERATE, Plan, draw

LIMIT_S = 180.0  # a request that is not answered by then is lost


@dataclass
class Outcome:
    plan: Plan
    status: int = 0
    lost: str = ""  # why it counts as neither answered nor cleanly ended
    num_tokens: int | None = None  # of all samples; None where the client cannot know
    metas: list[dict[str, Any]] = field(default_factory=list)  # of each sample, where the endpoint tells
    output_ids: list[list[int]] = field(default_factory=list)


async def send(client: httpx.AsyncClient, plan: Plan) -> Outcome:
    """One request to its planned end. Never raises: what goes wrong is in the outcome."""
    outcome = Outcome(plan)
    try:
        async with asyncio.timeout(LIMIT_S):
            await (_stream if plan.is_stream and plan.ending != "refused" else _whole)(client, outcome)
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError, IndexError) as error:
        outcome.lost = f"{type(error).__name__}: {error}" + "".join(f", after {cause!r}" for cause in _causes(error))
    return outcome


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an error was raised for, the nearest first: httpx's own errors often say nothing."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


async def _whole(client: httpx.AsyncClient, outcome: Outcome) -> None:
    answer = await client.post(outcome.plan.path, json=outcome.plan.body)
    outcome.status = answer.status_code
    if answer.status_code != 200:
        return
    document = answer.json()
    if outcome.plan.path == GENERATE:
        samples = document if isinstance(document, list) else [document]
        _note_samples(outcome, samples, [sample["output_ids"] for sample in samples])
        return
    outcome.num_tokens = document["usage"]["completion_tokens"]
    outcome.metas = [choice["meta_info"] for choice in document["choices"] if "meta_info" in choice]
    if len(document["choices"]) != outcome.plan.num_samples:
        outcome.lost = f"{len(document['choices'])} samples of {outcome.plan.num_samples}"


async def _stream(client: httpx.AsyncClient, outcome: Outcome) -> None:
    plan = outcome.plan
    async with client.stream("POST", plan.path, json=plan.body) as answer:
        outcome.status = answer.status_code
        if answer.status_code != 200:
            return
        last: dict[int, dict[str, Any]] = {}
        ids: dict[int, list[int]] = {}
        traces: dict[int, dict[str, list[Any]]] = {}
        num_events, is_done = 0, False
        async for event in _events(answer):
            num_events += 1
            if event is None:
                is_done = True
                break
            if "error" in event:
                outcome.lost = f"error in a stream: {event['error']}"
                return
            if event.get("usage"):
                outcome.num_tokens = event["usage"]["completion_tokens"]
            if plan.path == GENERATE:
                index = event.get("index", 0)
                last[index] = event
                ids.setdefault(index, []).extend(event["output_ids"])
                join_trace(traces.setdefault(index, {}), event["meta_info"])
            if plan.ending == "leave" and num_events > plan.number % 5:
                return
            if plan.ending == "abort" and num_events == 1 + plan.number % 5:
                await client.post("/abort_request", json={"rid": plan.body["rid"]})
        if not is_done:
            outcome.lost = "the stream ended without [DONE]"
        if plan.path == GENERATE:
            _note_samples(outcome, [last[i] for i in sorted(last)], [ids[i] for i in sorted(ids)])
            outcome.metas = [{**meta, **traces[i]} for i, meta in zip(sorted(last), outcome.metas, strict=True)]


def join_trace(trace: dict[str, list[Any]], meta: dict[str, Any]) -> None:
    """Each chunk carries the trace of its own tokens."""
    for key, values in meta.items():
        if key.startswith("led_") and isinstance(values, list):
            trace.setdefault(key, []).extend(values)


def _note_samples(outcome: Outcome, samples: list[dict[str, Any]], ids: list[list[int]]) -> None:
    outcome.metas = [sample["meta_info"] for sample in samples]
    counts = [meta["completion_tokens"] for meta in outcome.metas]
    # Streams are incremental or cumulative, by the release's default: the last event or all of them together.
    outcome.output_ids = [
        sample["output_ids"] if len(sample["output_ids"]) == count else whole
        for sample, whole, count in zip(samples, ids, counts, strict=True)
    ]
    outcome.num_tokens = sum(counts)
    if len(samples) != outcome.plan.num_samples:
        outcome.lost = f"{len(samples)} samples of {outcome.plan.num_samples}"
    if any(meta.get("finish_reason") is None for meta in outcome.metas):
        outcome.lost = "an answer without finish_reason"


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            yield None
        elif line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def run_phase(
    url: str, concurrency: int, numbers: Iterator[int], deadline: float, seed: int, methods: tuple[str, ...]
) -> list[Outcome]:
    """`concurrency` clients take turns with the numbers until there are no more, or until the deadline (monotonic)."""
    outcomes: list[Outcome] = []
    # No side hangs up on an idle connection (run.ENVIRONMENT): a request sent at that moment is lost, and the pool of
    # httpcore may close, as expired, a connection that it has just given away.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=None)
    certificates = httpx.create_ssl_context()

    async def client_loop() -> None:
        # A pool of its own: one for all looks at each of its connections, for each of them, at each request.
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits, verify=certificates) as client:
            for number in numbers:
                outcomes.append(await send(client, draw(number, seed, methods)))
                if time.monotonic() >= deadline:
                    return

    await asyncio.gather(*(client_loop() for _ in range(concurrency)))
    return outcomes
