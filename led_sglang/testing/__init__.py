"""For tests of a plugin or a model beside LED: a server, a client, every traced number recomputed (docs/testing.md).

    with led_server("--model-path", folder, "--dtype", "float32", log=log) as client:
        reply = client.generate(Request(prompt_ids, Query(depth=4), seed=1))
    check(Oracle.load(folder, markers=(open_id, close_id)), reply)

Needs httpx, numpy and psutil; the oracle torch and transformers, which are loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from led_sglang.cli import http_client
from led_sglang.cli.http_client import ServerError
from led_sglang.serving.child import Server, StartError
from led_sglang.testing.oracle import TOLERANCE, Comparison, Layers, Oracle, Query, Step
from led_sglang.wire import TRACE_KEYS, VALUE_COLUMNS

__all__ = [
    "TOLERANCE", "Client", "Comparison", "Layers", "Oracle", "Query", "Reply", "Request", "ServerError", "StartError",
    "Step", "check", "check_trace", "compare", "led_server", "sums",
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One traced request of /generate: token ids in, token ids out.

    query: what equals the paper's defaults is not sent, so a server with defaults of its own would decode by those.
    seed: of its noise; None = one that the server draws. sampling and top_level: further keys of `sampling_params` and
    of the body, which win over what is made here.
    """

    prompt_ids: list[int]
    query: Query = field(default_factory=Query)
    num_tokens: int = 12
    seed: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    top_level: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        names = [f.name for f in fields(Query) if f.name != "temperature"]
        changed = {name: getattr(self.query, name) for name in names}
        changed = {name: value for name, value in changed.items() if value != getattr(Query(), name)}
        sampling = {
            "temperature": self.query.temperature,
            "max_new_tokens": self.num_tokens,
            "ignore_eos": True,
            "custom_params": {"led": {"trace": True, **changed}},
            **({} if self.seed is None else {"sampling_seed": self.seed}),
            **self.sampling,
        }
        return {"input_ids": self.prompt_ids, "sampling_params": sampling, "stream": False, **self.top_level}


@dataclass(frozen=True)
class Reply:
    """A request and the server's JSON document for it."""

    request: Request
    document: Mapping[str, Any]

    @property
    def output_ids(self) -> list[int]:
        return list(self.document["output_ids"])

    @property
    def meta(self) -> dict[str, Any]:
        """`meta_info`: the trace, `led_params` and `led_stats` among what SGLang says (docs/api.md)."""
        return dict(self.document["meta_info"])


@dataclass(frozen=True)
class Client:
    """Raises ServerError with the server's words where it refuses or does not answer."""

    url: str
    api_key: str | None = None
    timeout_s: float = 200.0

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return http_client.post(f"{self.url}{path}", body, self.api_key, self.timeout_s).json()

    def get(self, path: str) -> Any:
        return http_client.get(f"{self.url}{path}", self.api_key, self.timeout_s).json()

    def generate(self, request: Request) -> Reply:
        return Reply(request, self.post("/generate", request.body()))

    def together(self, requests: Sequence[Request]) -> list[Reply]:
        """All at once, each over a connection of its own; the replies in the order of the requests."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self.generate, requests))


@contextmanager
def led_server(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[Client]:
    """A client of `python -m led_sglang.launch ARGUMENTS` on a free port of 127.0.0.1, which is stopped at the end.

    Without `--model-path` the server has the embedded model. Raises StartError with the log's end if it does not start.
    """
    with Server(*arguments, log=log, environment=environment) as server:
        yield Client(server.url)


def compare(oracle: Oracle, *replies: Reply) -> Comparison:
    """Every traced number and token of the replies with the recomputed ones."""
    total = Comparison()
    for reply in replies:
        total.same("number of tokens", len(reply.output_ids), reply.request.num_tokens)
        total.add(oracle.compare(reply.request.prompt_ids, reply.output_ids, reply.meta, reply.request.query))
    return total


def check(oracle: Oracle, *replies: Reply) -> Comparison:
    """The comparison, which found no fault; raises AssertionError with the first faults."""
    total = compare(oracle, *replies)
    assert not total.faults, f"{len(total.faults)} faults: " + "\n".join(total.faults[:8])
    return total


def check_trace(meta: Mapping[str, Any]) -> None:
    """Raises AssertionError unless a traced answer's `meta_info` agrees with itself.

    One entry for each generated token, probabilities that are some, and sums that equal `led_stats`.
    """
    params = meta["led_params"]
    assert {key: len(meta[key]) for key in TRACE_KEYS} == dict.fromkeys(TRACE_KEYS, meta["completion_tokens"])
    for values in zip(*(meta[key] for key in TRACE_KEYS), strict=True):
        row = dict(zip(TRACE_KEYS, values, strict=True))
        if row["led_depth"] is None:  # the engine's own token
            assert not row["led_explored"] and all(row[key] is None for key in VALUE_COLUMNS)
            continue
        assert 1 <= row["led_depth"] <= params["depth"] and 0 < row["led_confidence"] <= 1
        assert row["led_entropy"] >= 0 >= row["led_logprob"]
        assert len(row["led_candidates"]) == len(row["led_exploit"]) == len(row["led_explore"]) == params["top_k"]
        assert all(abs(sum(row[key]) - 1) < 1e-4 for key in ("led_exploit", "led_explore"))
        assert len(row["led_depth_entropy"]) == params["depth"]
        assert row["led_depth_entropy"][row["led_depth"] - 1] == row["led_entropy"]
    assert meta["led_stats"] == sums(meta)


def sums(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`led_stats` worked out from the lists of a trace."""
    pairs = list(zip(meta["led_depth"], meta["led_explored"], strict=True))
    explored = [depth for depth, is_explored in pairs if is_explored]
    return {
        "led_tokens": sum(depth is not None for depth, _ in pairs),
        "thinking_tokens": sum(meta["led_think"]),
        "explored_tokens": len(explored),
        "mean_depth": sum(explored) / len(explored) if explored else None,
        "fallbacks": 0,
    }
