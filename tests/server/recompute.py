"""What the tests need beside the oracle of `led_sglang.testing`: the engine's penalties, deliberate faults, p_LED.

Everything is recomputed from token ids alone, with transformers and float64.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from led_sglang import testing
from led_sglang.testing.oracle import Array, Layers, Oracle, Step, entropy, softmax
from tests.server.checkpoints import END_ID, MARKERS


@dataclass(frozen=True)
class Query(testing.Query):
    """With what the engine does to the logits of every layer."""

    logit_bias: dict[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = (END_ID,)  # what `min_new_tokens` forbids


@dataclass(frozen=True)
class Mutation:
    """A deliberate fault in the recomputation, which then must disagree with the server."""

    reverse_layers: bool = False
    layer_shift: int = 0
    apply_norm: bool = False
    temperature_factor: float = 1.0
    edit_final_only: bool = False  # penalties and bias do not reach the latent layers
    renormalise: bool = False  # a latent layer's tokens gain what others lose to a penalty


def adjusted(logits: Array, counted: list[int], query: Query) -> Array:
    """The engine's penalties and bias, which every layer (V,) must see.

    counted: the tokens that its penalties have counted, one for each generated before this one.
    """
    logits = logits.copy()
    ids, counts = np.unique(np.array(counted, dtype=np.int64), return_counts=True)
    logits[ids] -= query.frequency_penalty * counts + query.presence_penalty
    if len(counted) < query.min_new_tokens:
        logits[list(query.stop_ids)] = -np.inf
    if query.repetition_penalty != 1.0:
        logits[ids] *= np.where(logits[ids] > 0, 1 / query.repetition_penalty, query.repetition_penalty)
    for token, bias in query.logit_bias.items():
        logits[token] += bias
    return logits


def lagging(prompt_ids: list[int], output_ids: list[int]) -> list[int]:
    """What the engine has counted before the next token: it lags one token behind.

    With the overlap scheduler the newest token is still on the device when it is counted, and the prompt's last one
    stands in at the first decode step. That is so of a request alone: where another request's prompt ran since the last
    step the newest token is known in time, and one is never counted and another one twice.
    """
    return [prompt_ids[-1], *output_ids][: len(output_ids)]


@dataclass(frozen=True)
class MutantOracle(Oracle):
    mutation: Mutation = Mutation()

    def step(self, layers: Layers, row: int, before: list[int], query: testing.Query) -> Step:
        tau = query.tau * self.mutation.temperature_factor
        return super().step(layers, row, before, replace(query, temperature=tau))

    def latent_logits(self, layers: Layers, row: int, query: testing.Query) -> Array:
        query = replace(query, latent_offset=query.latent_offset + self.mutation.layer_shift)
        query = replace(query, latent_norm=query.latent_norm or self.mutation.apply_norm)
        logits = super().latent_logits(layers, row, query)
        return logits[::-1] if self.mutation.reverse_layers else logits

    def posterior(self, logits: Array, before: list[int], tau: float) -> Array:
        if self.mutation.edit_final_only:
            return softmax(logits / tau)
        if self.mutation.renormalise:
            return softmax(self.edited(logits, before) / tau)
        return super().posterior(logits, before, tau)


def oracle_of(
    model: Any,
    prompt_ids: list[int],
    query: Query,
    mutation: Mutation | None = None,
    markers: tuple[int, int] = MARKERS,
) -> MutantOracle:
    """Of one request, whose penalties and bias every layer must see."""

    def edit(logits: Array, before: list[int]) -> Array:
        return adjusted(logits, lagging(prompt_ids, before), query)

    return MutantOracle(model, markers, edit, mutation or Mutation())


def led_distribution(step: Step, query: Query) -> tuple[NDArray[np.int64], Array, Array]:
    """Candidates (K,), and the exploit branch and p_LED over them, from nothing that the server reported (no min_p)."""
    candidates = np.argsort(-step.final, kind="stable")[: query.top_k]
    aggregates = step.aggregates(candidates.tolist(), query.normalize_layers)
    explore = aggregates[int(np.argmax([entropy(row) for row in aggregates]))]
    share = float(step.final.max()) if query.exploit else 0.0
    return candidates, aggregates[0], share * aggregates[0] + (1 - share) * explore


def engine_logprobs(layers: Layers, prompt_ids: list[int], output_ids: list[int], query: Query) -> list[float]:
    """log p^L of every generated token: what the engine's own logprobs must show."""
    values = []
    for i, token in enumerate(output_ids):
        row = len(prompt_ids) + i - 1
        logits = adjusted(layers.final_logits[row], lagging(prompt_ids, output_ids[:i]), query)
        values.append(float(np.log(softmax(logits / query.tau)[token])))
    return values


MUTATIONS: dict[str, Mutation] = {
    "reversed layer order": Mutation(reverse_layers=True),
    "one layer too early": Mutation(layer_shift=1),
    "final norm applied": Mutation(apply_norm=True),
    "wrong temperature": Mutation(temperature_factor=0.8),
}
