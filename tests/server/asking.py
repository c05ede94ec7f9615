"""Asking a server with token ids, and holding its answer against the recomputation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import torch

from tests.server import checkpoints, recompute
from tests.server.launching import Server
from tests.server.talking import joined, streamed

MARKERS = (checkpoints.OPEN_ID, checkpoints.CLOSE_ID)
LED_KEYS = {"depth", "top_k", "phase", "exploit", "latent_norm", "normalize_layers", "latent_offset", "min_p"}
SAMPLING_KEYS = {"logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens"}


def words(seed: int, length: int) -> list[int]:
    """Ordinary token ids, no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 797, (length,), generator=generator).tolist()


def thinking_prompt(seed: int = 0, length: int = 20) -> list[int]:
    return [*words(seed, length - 1), checkpoints.OPEN_ID]


@dataclass(frozen=True)
class Request:
    """One /generate request with token ids in and a trace out."""

    prompt_ids: list[int]
    asked: recompute.Query = field(default_factory=recompute.Query)
    num_tokens: int = 12
    seed: int | None = 1
    return_logprob: bool = False
    ignore_eos: bool = True
    led: Any = None  # custom_params.led as it stands; None = the trace with what `asked` changes
    filters: dict[str, float] = field(default_factory=dict)  # the engine's top_k, top_p and min_p
    mask: str | None = None  # sampling masks are wanted, with logprobs of the token, "selected", or of all, "support"

    def body(self) -> dict[str, Any]:
        changed = {
            f.name: getattr(self.asked, f.name)
            for f in fields(self.asked)
            if getattr(self.asked, f.name) != getattr(recompute.Query(), f.name)
        }
        led = {"trace": True, **{k: v for k, v in changed.items() if k in LED_KEYS}}
        sampling = {k: v for k, v in changed.items() if k in SAMPLING_KEYS}
        if "logit_bias" in sampling:
            sampling["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"].items()}
        sampling |= {
            "temperature": self.asked.temperature,
            "max_new_tokens": self.num_tokens,
            "ignore_eos": self.ignore_eos,
            "custom_params": {"led": led if self.led is None else self.led},
        }
        if self.seed is not None:
            sampling["sampling_seed"] = self.seed
        body = {
            "input_ids": self.prompt_ids,
            "sampling_params": sampling | self.filters,
            "return_logprob": self.return_logprob,
            "stream": False,
        }
        return (
            body if self.mask is None else {**body, "return_sampling_mask": True, "sampling_logprobs_mode": self.mask}
        )


@dataclass(frozen=True)
class Reply:
    request: Request
    document: dict[str, Any]

    @property
    def output_ids(self) -> list[int]:
        return list(self.document["output_ids"])

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self.document["meta_info"])


class Client:
    """Token ids in, token ids out."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.url}{path}", json=body, timeout=200)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:2000]}"
        return answer.json()

    def generate(self, request: Request) -> Reply:
        return Reply(request, self.post("/generate", request.body()))

    def stream(self, request: Request) -> Reply:
        """The same in chunks, of a server with --incremental-streaming-output."""
        with httpx.Client(base_url=self.url, timeout=200) as http:
            [answer] = joined(streamed(http, request.body()), is_incremental=True)
        return Reply(request, answer)

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", timeout=60)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:2000]}"
        return answer.json()

    def samples(self, request: Request, n: int) -> list[Reply]:
        """n samples of one request."""
        body = request.body()
        body["sampling_params"]["n"] = n
        return [Reply(request, document) for document in self.post("/generate", body)]

    def together(self, requests: Sequence[Request]) -> list[Reply]:
        """All of them at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self.generate, requests))

    def flush_cache(self) -> None:
        answer = httpx.post(f"{self.url}/flush_cache", timeout=60)
        assert answer.status_code == 200, answer.text


@dataclass(frozen=True)
class Oracle:
    """The same checkpoint in transformers."""

    folder: Path

    @cached_property
    def model(self) -> Any:
        return checkpoints.load(self.folder)

    def compare(self, reply: Reply, mutation: recompute.Mutation | None = None) -> recompute.Comparison:
        return self.compare_all([reply], mutation)

    def compare_all(self, replies: Sequence[Reply], mutation: recompute.Mutation | None = None) -> recompute.Comparison:
        total = recompute.Comparison()
        for reply in replies:
            request, output_ids = reply.request, reply.output_ids
            total.same("number of tokens", len(output_ids), request.num_tokens)
            layers = recompute.forward(self.model, request.prompt_ids + output_ids)
            given = layers, request.prompt_ids, output_ids, reply.meta, request.asked
            total.add(recompute.compare(*given, MARKERS, mutation))
        return total


def check(oracle: Oracle, *replies: Reply) -> recompute.Comparison:
    """Every traced value agrees, and there was something to compare."""
    comparison = oracle.compare_all(replies)
    assert not comparison.faults, f"{len(comparison.faults)} faults: " + "\n".join(comparison.faults[:8])
    return comparison


def sharp_server(folder: Path, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> Server:
    limits = ("--context-length", "2048", "--max-running-requests", "32")
    model = ("--model-path", str(folder), "--dtype", "float32")
    return Server(*model, *limits, *arguments, log=log, environment=environment)
