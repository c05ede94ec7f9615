"""Requests of every method with the distributions that their tokens were drawn from, for the tests of methods."""

from typing import Any

import numpy as np
import torch

from led_sglang.ops.rows import noise
from led_sglang.testing import Reply
from led_sglang.testing.oracle import Array
from tests.server.checkpoints import MARKERS, VOCAB_SIZE
from tests.server.clients import SAMPLING_KEYS, Client, Request
from tests.server.methods_recompute import Fault, Outcome, Soft, SoftCase, Uniforms
from tests.server.recompute import Query

NUM_TOKENS = 24
FREE_TEMPERATURE = 4.0  # where float32's error does not grow from one mixture to the next
NO_FAULT = Fault()


class LogprobClient(Client):
    """A client that gets the log-probability of every token at every step."""

    def generate(self, request: Request) -> Reply:
        body = request.body()
        if not request.return_logprob:
            return Reply(request, self.post("/generate", body))
        body |= {"token_ids_logprob": list(range(VOCAB_SIZE)), "logprob_start_len": -1}
        return Reply(request, self.post("/generate", body))


def request_for(
    led: Any, prompt_ids: list[int], temperature: float = 0.0, seed: int | None = 1, **more: Any
) -> Request:
    query = Query(temperature, **{key: more.pop(key) for key in SAMPLING_KEYS if key in more})
    return Request(prompt_ids, query, more.pop("num_tokens", NUM_TOKENS), seed, return_logprob=True, led=led, **more)


def distributions(reply: Reply) -> list[Array]:
    """Log-probabilities (V,) of every step; forbidden tokens come as the lowest float32."""
    steps = reply.meta["output_token_ids_logprobs"]
    values = [np.array([logprob for logprob, _, _ in step]) for step in steps]
    assert all(len(step) == VOCAB_SIZE for step in values)
    return [np.where(step < -1e30, -np.inf, step) for step in values]


def agreed(outcome: Outcome, num_steps: int = NUM_TOKENS) -> Outcome:
    assert not outcome.faults, f"{len(outcome.faults)} faults: " + "\n".join(outcome.faults[:8])
    assert outcome.num_steps == num_steps
    return outcome


def uniforms_of(seed: int, num_candidates: int) -> Uniforms:
    """The noise is the one thing taken from led_sglang: without it there would be nothing to recompute."""

    def at(position: int) -> Array:
        row = torch.tensor([[seed], [0], [position]])
        return np.asarray(noise.uniforms(row[0], row[1], row[2], 2 + num_candidates)[2:, 0].numpy())

    return at


def soft_query(request: Request) -> Soft:
    led = {key: value for key, value in request.led.items() if key != "method"}
    if request.led["method"] == "soft_thinking_gumbel":
        led.setdefault("gumbel_temperature", 0.5)
    return Soft(request.query.temperature, edits=request.query, filters=request.filters, **led)


def case_of(request: Request, fault: Fault = NO_FAULT) -> SoftCase:
    query = soft_query(request)
    uniforms = uniforms_of(request.seed or 0, query.max_topk) if query.gumbel_temperature else None
    return SoftCase(request.prompt_ids, query, MARKERS, uniforms, fault)
