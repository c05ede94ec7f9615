"""LED recomputed from token ids alone, with transformers and float64: knows nothing of led_sglang or SGLang.

One forward pass over prompt and output gives every layer at every position; from there each generated token's traced
values are worked out again with the paper's equations (arXiv 2602.01698) and compared with what the server told.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.server.checkpoints import END_ID

Array = NDArray[np.float64]

TOLERANCE = 1e-3  # of every traced number
TIE = 1e-4  # two probabilities or entropies this close may change places in float32


@dataclass(frozen=True)
class Query:
    """What a request asked for, as far as a step's numbers depend on it. The defaults are the paper's."""

    temperature: float = 0.6  # 0 = greedy
    depth: int = 8
    top_k: int = 8
    phase: str = "think"
    exploit: bool = True
    latent_norm: bool = False
    normalize_layers: bool = False
    latent_offset: int = 0
    min_p: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = (END_ID,)  # what `min_new_tokens` forbids

    @property
    def tau(self) -> float:
        return self.temperature if self.temperature > 0 else 1.0


@dataclass(frozen=True)
class Mutation:
    """A deliberate fault in the recomputation, which then must disagree with the server."""

    reverse_layers: bool = False
    layer_shift: int = 0
    apply_norm: bool = False
    temperature_factor: float = 1.0
    edit_final_only: bool = False  # penalties and bias do not reach the latent layers
    renormalise: bool = False  # a latent layer's tokens gain what others lose to a penalty


@dataclass(frozen=True)
class Layers:
    """One forward pass: row t predicts the token after position t."""

    final_logits: Array  # (T, V)
    hidden: Array  # (L + 1, T, H): hidden[l] is h^l, the residual stream after layer l (1-based); 0 = embeddings
    head: Array  # (V, H)
    normed: Array  # (L + 1, T, H): the same after the final norm

    @property
    def num_layers(self) -> int:
        return len(self.hidden) - 1


@torch.no_grad()
def forward(model: Any, ids: list[int]) -> Layers:
    outputs = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    # The last entry of transformers' hidden_states has the final norm applied; h^L itself is never needed, so it is
    # blanked: an accidental use would show as NaN.
    hidden = torch.stack(outputs.hidden_states)[:, 0].double()  # (L + 1, T, H)
    hidden[-1] = torch.nan
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    return Layers(
        final_logits=outputs.logits[0].double().numpy(),
        hidden=hidden.numpy(),
        head=model.lm_head.weight.detach().double().numpy(),
        normed=model.model.norm(hidden).numpy(),
    )


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def entropy(probs: Array) -> float:
    positive = probs[probs > 0]
    return float(-(positive * np.log(positive)).sum())


def is_thinking(ids: list[int], open_id: int, close_id: int) -> bool:
    """By whichever marker came last."""
    markers = [token for token in ids if token in (open_id, close_id)]
    return bool(markers) and markers[-1] == open_id


def adjusted(logits: Array, counted: list[int], asked: Query) -> Array:
    """The engine's penalties and bias, which every layer (V,) must see.

    counted: the tokens that its penalties have counted, one for each generated before this one.
    """
    logits = logits.copy()
    ids, counts = np.unique(np.array(counted, dtype=np.int64), return_counts=True)
    logits[ids] -= asked.frequency_penalty * counts + asked.presence_penalty
    if len(counted) < asked.min_new_tokens:
        logits[list(asked.stop_ids)] = -np.inf
    if asked.repetition_penalty != 1.0:
        logits[ids] *= np.where(logits[ids] > 0, 1 / asked.repetition_penalty, asked.repetition_penalty)
    for token, bias in asked.logit_bias.items():
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
class Step:
    """One generated token's numbers, over the full vocabulary."""

    final: Array  # (V,) p^L
    latents: Array  # (J, V) p^{L-1}, p^{L-2}, ...

    def aggregates(self, candidate_ids: list[int], normalize_layers: bool) -> Array:
        """(J + 1, K): the candidates' distribution for each depth (Eq. 4)."""
        layers = np.concatenate([self.final[None], self.latents])[:, candidate_ids]
        if normalize_layers:
            layers = layers / layers.sum(-1, keepdims=True)
        sums = layers.cumsum(0)
        return np.asarray(sums / sums.sum(-1, keepdims=True))


def step_at(layers: Layers, row: int, edit: Callable[[Array], Array], asked: Query, mutation: Mutation) -> Step:
    """`edit`: the request's penalties and bias, on any layer's logits (V,)."""
    tau = asked.tau * mutation.temperature_factor
    first = layers.num_layers - 1 - asked.latent_offset - mutation.layer_shift
    wanted = [first - j for j in range(asked.depth - 1)]
    if mutation.reverse_layers:
        wanted = wanted[::-1]
    stream = layers.normed if asked.latent_norm or mutation.apply_norm else layers.hidden
    latent_logits = stream[wanted, row] @ layers.head.T  # (J, V)
    latents = [latent_posterior(logits, edit, tau, mutation) for logits in latent_logits]
    return Step(softmax(edit(layers.final_logits[row]) / tau), np.array(latents).reshape(latent_logits.shape))


def led_distribution(step: Step, asked: Query) -> tuple[NDArray[np.int64], Array, Array]:
    """Candidates (K,), and the exploit branch and p_LED over them, from nothing that the server told (no min_p)."""
    candidates = np.argsort(-step.final, kind="stable")[: asked.top_k]
    aggregates = step.aggregates(candidates.tolist(), asked.normalize_layers)
    explore = aggregates[int(np.argmax([entropy(row) for row in aggregates]))]
    share = float(step.final.max()) if asked.exploit else 0.0
    return candidates, aggregates[0], share * aggregates[0] + (1 - share) * explore


def latent_posterior(logits: Array, edit: Callable[[Array], Array], tau: float, mutation: Mutation) -> Array:
    """(V,): edited, and normalised by the larger of the sums with and without the edits."""
    edited = logits if mutation.edit_final_only else edit(logits)
    peak = max(logits.max(), edited.max())
    plain, weights = np.exp((logits - peak) / tau).sum(), np.exp((edited - peak) / tau)
    return np.asarray(weights / (weights.sum() if mutation.renormalise else max(plain, weights.sum())))


@dataclass
class Comparison:
    """What differs between server and recomputation; `faults` is empty where they agree."""

    faults: list[str] = field(default_factory=list)
    num_steps: int = 0
    num_active: int = 0
    num_explored: int = 0
    worst: float = 0.0
    depths: list[int] = field(default_factory=list)

    def near(self, name: str, reported: float, expected: float) -> None:
        error = abs(reported - expected)
        if not error <= TOLERANCE:
            self.faults.append(f"{name}: the server told {reported}, recomputed {expected}")
        else:
            self.worst = max(self.worst, error)

    def same(self, name: str, reported: object, expected: object) -> None:
        if reported != expected:
            self.faults.append(f"{name}: the server told {reported}, recomputed {expected}")

    def add(self, other: "Comparison") -> None:
        self.faults += other.faults
        self.depths += other.depths
        self.num_steps += other.num_steps
        self.num_active += other.num_active
        self.num_explored += other.num_explored
        self.worst = max(self.worst, other.worst)

    def holds(self, name: str, is_true: bool) -> None:
        if not is_true:
            self.faults.append(name)


def compare(
    layers: Layers,
    prompt_ids: list[int],
    output_ids: list[int],
    trace: dict[str, list[Any]],
    asked: Query,
    markers: tuple[int, int],
    mutation: Mutation | None = None,
) -> Comparison:
    """Every traced value of every generated token against the recomputation."""
    result = Comparison()
    columns = ("think", "explored", "depth", "confidence", "entropy", "candidates", "exploit", "explore", "logprob")
    for column in columns:
        result.same(f"number of led_{column}", len(trace[f"led_{column}"]), len(output_ids))
    if result.faults:
        return result
    for i, token in enumerate(output_ids):
        reported = {column: trace[f"led_{column}"][i] for column in columns}
        before = output_ids[:i]
        thinking = is_thinking(prompt_ids + before, *markers)
        result.num_steps += 1
        result.same(f"token {i} think", reported["think"], thinking)
        if not thinking and asked.phase == "think":
            result.same(f"token {i} explored outside the phase", reported["explored"], False)
            for column in columns[2:]:
                result.same(f"token {i} {column} outside the phase", reported[column], None)
            continue
        row = len(prompt_ids) + i - 1
        edit = partial(adjusted, counted=lagging(prompt_ids, before), asked=asked)
        step = step_at(layers, row, edit, asked, mutation or Mutation())
        compare_step(result, f"token {i}", step, reported, token, asked)
    return result


def compare_step(
    result: Comparison, where: str, step: Step, reported: dict[str, Any], token: int, asked: Query
) -> None:
    if reported["candidates"] is None:
        result.faults.append(f"{where}: nothing traced inside the phase")
        return
    result.num_active += 1
    result.num_explored += reported["explored"]
    result.depths.append(reported["depth"])
    pairs = zip(reported["candidates"], reported["exploit"], strict=True)
    kept = [c for c, p in pairs if p > 0 or not asked.min_p]  # p may underflow; only min_p drops candidates here
    compare_candidates(result, where, step.final, kept, asked)
    confidence = float(step.final.max())
    result.near(f"{where} confidence", reported["confidence"], confidence)

    aggregates = step.aggregates(kept, asked.normalize_layers)
    entropies = np.array([entropy(row) for row in aggregates])
    # The server's depth must be one of maximal entropy; its own choice is then followed.
    if not 1 <= reported["depth"] <= len(aggregates):
        result.faults.append(f"{where}: depth {reported['depth']} of {len(aggregates)}")
        return
    chosen = reported["depth"] - 1
    result.holds(
        f"{where}: depth {reported['depth']}, entropies {entropies}", entropies[chosen] >= entropies.max() - TIE
    )
    result.near(f"{where} entropy", reported["entropy"], float(entropies[chosen]))
    exploit, explore = aggregates[0], aggregates[chosen]
    for name, probs in (("exploit", exploit), ("explore", explore)):
        values = [p for c, p in zip(reported["candidates"], reported[name], strict=True) if c in kept]
        for j, (value, expected) in enumerate(zip(values, probs, strict=True)):
            result.near(f"{where} {name}[{j}]", value, float(expected))
        others = [p for c, p in zip(reported["candidates"], reported[name], strict=True) if c not in kept]
        result.holds(f"{where}: dropped candidates keep probability in {name}", not any(others))
    compare_token(result, where, reported, token, kept, exploit, explore, confidence, asked)


def compare_candidates(result: Comparison, where: str, final: Array, kept: list[int], asked: Query) -> None:
    """The k most probable, in order, but for near-ties; none below min_p, none missing above it."""
    probs, floor = final[kept], asked.min_p * final.max()
    others = np.delete(final, kept)
    others = others[others > floor * (1 + TIE)]
    result.holds(f"{where}: candidate twice in {kept}", len(set(kept)) == len(kept))
    result.holds(f"{where}: {len(kept)} candidates", 1 <= len(kept) <= asked.top_k)
    result.holds(f"{where}: candidates out of order {probs}", bool((np.diff(probs) <= TIE).all()))
    result.holds(f"{where}: candidate below min_p", bool((probs >= floor * (1 - TIE)).all()))
    is_full = len(kept) == asked.top_k
    if len(others):
        missing = others.max() > probs.min() + TIE if is_full else others.max() > 0
        result.holds(f"{where}: {others.max()} is missing among the candidates {probs}", not missing)


def compare_token(
    result: Comparison,
    where: str,
    reported: dict[str, Any],
    token: int,
    kept: list[int],
    exploit: Array,
    explore: Array,
    confidence: float,
    asked: Query,
) -> None:
    """The token can come from the branch that was told, and log p_LED is that of the token with the coin summed out."""
    if token not in kept:
        result.faults.append(f"{where}: {token} is none of the candidates {kept}")
        return
    if not asked.exploit:
        result.same(f"{where} explored without exploit branch", reported["explored"], True)
    branch, place = (explore if reported["explored"] else exploit), kept.index(token)
    result.holds(f"{where}: token of probability {branch[place]}", branch[place] > 0)
    if asked.temperature == 0:
        result.holds(f"{where}: greedy, but not the arg-max of its branch", branch[place] >= branch.max() - TIE)
    share = confidence if asked.exploit else 0.0
    led_prob = share * exploit[place] + (1 - share) * explore[place]
    result.near(f"{where} logprob", reported["logprob"], float(np.log(led_prob)))


def engine_logprobs(layers: Layers, prompt_ids: list[int], output_ids: list[int], asked: Query) -> list[float]:
    """log p^L of every generated token: what the engine's own logprobs must show."""
    values = []
    for i, token in enumerate(output_ids):
        row = len(prompt_ids) + i - 1
        logits = adjusted(layers.final_logits[row], lagging(prompt_ids, output_ids[:i]), asked)
        values.append(float(np.log(softmax(logits / asked.tau)[token])))
    return values


MUTATIONS: dict[str, Mutation] = {
    "reversed layer order": Mutation(reverse_layers=True),
    "one layer too early": Mutation(layer_shift=1),
    "final norm applied": Mutation(apply_norm=True),
    "wrong temperature": Mutation(temperature_factor=0.8),
}
