"""Clients with token ids in and out: `led_sglang.testing`'s, with what the tests of exactness ask for beside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import torch

from led_sglang import testing
from led_sglang.testing import Comparison, Reply
from tests.server import checkpoints
from tests.server.api import joined, streamed
from tests.server.recompute import Mutation, Query, oracle_of
from tests.server.servers import Server

SAMPLING_KEYS = {"logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens"}


def words(seed: int, length: int) -> list[int]:
    """Ordinary token ids, no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 797, (length,), generator=generator).tolist()


def thinking_prompt(seed: int = 0, length: int = 20) -> list[int]:
    return [*words(seed, length - 1), checkpoints.OPEN_ID]


@dataclass(frozen=True)
class Request(testing.Request):
    query: Query = field(default_factory=Query)
    seed: int | None = 1
    return_logprob: bool = False
    ignore_eos: bool = True
    led: Any = None  # custom_params.led as it stands; None = the trace with what `query` changes
    filters: dict[str, float] = field(default_factory=dict)  # the engine's top_k, top_p and min_p
    mask: str | None = None  # returns sampling masks, and logprobs of the token, "selected", or of all, "support"

    def body(self) -> dict[str, Any]:
        values = {key: getattr(self.query, key) for key in SAMPLING_KEYS}
        sampling = {key: value for key, value in values.items() if value != getattr(Query(), key)}
        if "logit_bias" in sampling:
            sampling["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"].items()}
        sampling |= {"ignore_eos": self.ignore_eos, **self.filters, **self.sampling}
        if self.led is not None:
            sampling["custom_params"] = {"led": self.led}
        masks = {} if self.mask is None else {"return_sampling_mask": True, "sampling_logprobs_mode": self.mask}
        more = {"return_logprob": self.return_logprob, **masks, **self.top_level}
        return testing.Request(self.prompt_ids, self.query, self.num_tokens, self.seed, sampling, more).body()


class Client(testing.Client):
    def stream(self, request: Request) -> Reply:
        """The same as `generate` in chunks, of a server with --incremental-streaming-output."""
        with httpx.Client(base_url=self.url, timeout=self.timeout_s) as http:
            [answer] = joined(streamed(http, request.body()), is_incremental=True)
        return Reply(request, answer)

    def samples(self, request: Request, n: int) -> list[Reply]:
        """n samples of one request."""
        body = request.body()
        body["sampling_params"]["n"] = n
        return [Reply(request, document) for document in self.post("/generate", body)]

    def flush_cache(self) -> None:
        answer = httpx.post(f"{self.url}/flush_cache", timeout=60)
        assert answer.status_code == 200, answer.text


@dataclass(frozen=True)
class Oracle:
    """The same checkpoint in transformers; every request has an oracle of its own, for its penalties and bias."""

    folder: Path

    @cached_property
    def model(self) -> Any:
        return checkpoints.load(self.folder)

    def compare(self, reply: Reply, mutation: Mutation | None = None) -> Comparison:
        return self.compare_all([reply], mutation)

    def compare_all(self, replies: Sequence[Reply], mutation: Mutation | None = None) -> Comparison:
        return self._each(testing.compare, replies, mutation)

    def _each(self, compare: Any, replies: Sequence[Reply], mutation: Mutation | None) -> Comparison:
        total = Comparison()
        for reply in replies:
            request = reply.request
            total.add(compare(oracle_of(self.model, request.prompt_ids, request.query, mutation), reply))
        return total

    def check_all(self, replies: Sequence[Reply]) -> Comparison:
        return self._each(testing.check, replies, None)


def check(oracle: Oracle, *replies: Reply) -> Comparison:
    """Every traced value agrees, and how much there was to compare."""
    return oracle.check_all(replies)


def sharp_server(folder: Path, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> Server:
    limits = ("--context-length", "2048", "--max-running-requests", "32")
    model = ("--model-path", str(folder), "--dtype", "float32")
    return Server(*model, *limits, *arguments, log=log, environment=environment)
