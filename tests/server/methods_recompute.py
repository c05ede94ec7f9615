"""The other methods recomputed with transformers and float64: knows nothing of led_sglang or SGLang.

DoLa (arXiv 2309.03883), Confident Decoding (2606.21906) and SLED (2411.02433) need one forward pass over prompt and
output. Soft Thinking
(2505.15778, 2508.03440) is given embeddings instead of token ids, because its inputs are mixtures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from led_sglang.testing.oracle import TIE, TOLERANCE, Array, Layers, entropy, is_thinking, softmax
from tests.server.recompute import Query, adjusted, lagging

DOLA_LAYERS = {"low": (2, 4, 6), "high": (7, 9, 11)}  # of 12 layers, 1-based
LOWEST = -30.0  # log-probabilities below this are float32's noise
Edit = Callable[[Array], Array]  # a request's penalties and bias, on any logits (V,)
Uniforms = Callable[[int], Array]  # position of the newest token -> one uniform for each candidate


@dataclass(frozen=True)
class Fault:
    """A deliberate fault in the recomputation, which then must disagree with the server."""

    layer_shift: int = 0
    pick_other: bool = False  # DoLa: the layer that differs least
    swap_norm: bool = False  # DoLa and SLED with the final norm, Confident Decoding without
    no_edits: bool = False  # Confident Decoding: penalties and bias act on the final layer only
    reverse_step: bool = False  # SLED: away from the layers
    power: float = 2.0  # SLED: of the cosine
    plain_inputs: bool = False  # soft steps feed the heaviest token instead of the mixture
    weight_power: float = 1.0
    noise_shift: int = 0


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def jensen_shannon(p: Array, q: Array) -> float:
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def dola_choices(
    layers: Layers, row: int, half: str, relative_top: float, fault: Fault, edit: Edit
) -> dict[int, list[Array]]:
    """Layer -> logits, for every layer that may win; several where a token is as good as on the plausibility limit.

    Layers are compared and contrasted without the edits; the limit is that of the edited final layer, and the contrast
    is edited. What the edits forbid is forbidden everywhere.
    """
    limited = log_softmax(edit(layers.final_logits[row]))
    is_forbidden = limited == -np.inf

    def distribution(logits: Array) -> Array:
        return log_softmax(np.where(is_forbidden, -np.inf, logits))

    final = distribution(layers.final_logits[row])
    stream = layers.normed if fault.swap_norm else layers.hidden
    early = {j: distribution(layers.head @ stream[j - fault.layer_shift, row]) for j in DOLA_LAYERS[half]}
    scores = {j: jensen_shannon(np.exp(final), np.exp(logprobs)) for j, logprobs in early.items()}
    if fault.pick_other:
        scores = {j: -score for j, score in scores.items()}
    best = max(scores.values())
    floor = limited.max() + (math.log(relative_top) if relative_top else -math.inf)

    def contrast(j: int, limit: float) -> Array:
        scored = edit(np.subtract(final, early[j], out=np.zeros_like(final), where=~is_forbidden))
        return np.where((limited >= limit) & ~is_forbidden, scored, -np.inf)

    return {j: [contrast(j, floor + shift) for shift in (-TIE, TIE)] for j in early if scores[j] >= best - TIE}


def confident_choices(
    layers: Layers, row: int, num_layers: int, select_method: str, fault: Fault, edit: Edit
) -> dict[int, list[Array]]:
    """Layers back from the final one -> logits, for every one that may be selected.

    Layers are compared without the edits, and the chosen one's logits are edited.
    """
    is_forbidden = edit(layers.final_logits[row]) == -np.inf
    stream = layers.hidden if fault.swap_norm else layers.normed
    last = len(layers.hidden) - 1
    ids = [last - j - fault.layer_shift for j in range(1, min(num_layers, last))]
    logits = [layers.final_logits[row], *(layers.head @ stream[i, row] for i in ids)]
    logits = [np.where(is_forbidden, -np.inf, values) for values in logits]
    entropies = [entropy(softmax(values)) for values in logits]
    edited = [values if fault.no_edits and j else edit(values) for j, values in enumerate(logits)]
    base, _, shift = select_method.partition("-")
    offset = int(shift[1:] or 0) * (-1 if shift.startswith("p") else 1)
    stops = valleys(entropies) if base == "trough" else [0]
    chosen = {min(max(stop + offset, 0), len(logits) - 1) for stop in stops}
    return {j: [edited[j]] for j in chosen}


def valleys(entropies: list[float]) -> list[int]:
    """Where a scan may stop that goes back while entropy falls: several places where neighbours are as good as tied."""
    found = []
    for j in range(len(entropies) - 1):
        fall = entropies[j] - entropies[j + 1]
        if fall <= TIE:
            found.append(j)
        if fall < -TIE:
            return found
    return [*found, len(entropies) - 1]


def sled_choices(
    layers: Layers, row: int, evolution_rate: float, evolution_scale: int, fault: Fault, edit: Edit
) -> dict[int, list[Array]]:
    """0 -> logits; two where the last candidate and the first token beside them are as good as tied.

    The layers are compared without the edits, with what these forbid left out; the candidates are those of the edited
    logits, and the evolved logits are edited.
    """
    final, limited = layers.final_logits[row], edit(layers.final_logits[row])
    allowed = np.flatnonzero(limited > -np.inf)
    order = allowed[np.argsort(-limited[allowed], kind="stable")]
    chosen, beside = order[:evolution_scale], order[evolution_scale : evolution_scale + 1]
    sets = [chosen]
    if beside.size and limited[chosen[-1]] - limited[beside[0]] < TIE:
        sets.append(np.array([*chosen[:-1], beside[0]]))
    probs = np.zeros_like(final)
    probs[allowed] = softmax(final[allowed])
    stream = layers.normed if fault.swap_norm else layers.hidden
    early = [layers.head @ stream[n - fault.layer_shift, row] for n in range(1, len(layers.hidden) - 1)]

    def evolved(candidates: Array) -> Array:
        weights = sum(alignment(z, final, allowed, candidates, fault.power) for z in early)
        step = probs[candidates] - weights / weights.sum()
        logits = np.full_like(final, -np.inf)
        logits[candidates] = final[candidates] - evolution_rate * (-step if fault.reverse_step else step)
        return edit(logits)

    return {0: [evolved(candidates) for candidates in sets]}


def alignment(early: Array, final: Array, allowed: Any, candidates: Any, power: float) -> Array:
    """max(cos(early - final, softmax(early) - onehot(i)), 0)^power over the allowed tokens, of each candidate i."""
    change, probs = (early - final)[allowed], softmax(early[allowed])
    found = []
    for i in candidates:
        at = int(np.searchsorted(allowed, i))
        gradient = probs.copy()
        gradient[at] = -np.delete(probs, at).sum()  # q_i - 1, of full precision where the layer is sure
        gradient /= max(np.abs(gradient).max(), np.finfo(float).tiny)
        length = np.linalg.norm(change) * np.linalg.norm(gradient)
        found.append(max(change @ gradient / length, 0.0) ** power if length else 0.0)
    return np.array(found)


@dataclass
class Outcome:
    """What differs between server and recomputation; `faults` is empty where they agree."""

    faults: list[str] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)  # layer by step
    num_steps: int = 0
    worst: float = 0.0


def distance(reported: Array, expected: Array) -> float:
    """Largest difference of two log-distributions; infinite where one of them excludes what the other does not."""
    if ((reported == -np.inf) & (expected > LOWEST)).any() or ((expected == -np.inf) & (reported > LOWEST)).any():
        return math.inf
    shown = (reported > LOWEST) & (expected > LOWEST)
    return float(np.abs(reported[shown] - expected[shown]).max())


def compare_logits(
    choices: Callable[[int], dict[int, list[Array]]],
    reported: list[Array],
    prompt_ids: list[int],
    output_ids: list[int],
    temperature: float,
) -> Outcome:
    """The served log-distribution of every step (V,) against the method's logits at the row that predicts it."""
    outcome = Outcome()
    for i, logprobs in enumerate(reported):
        tau = temperature or 1.0
        options = [(j, log_softmax(z / tau)) for j, zs in choices(len(prompt_ids) + i - 1).items() for z in zs]
        error, chosen = min((distance(logprobs, expected), j) for j, expected in options)
        outcome.num_steps += 1
        if error > TOLERANCE:
            outcome.faults.append(f"step {i}: log-probabilities differ by {error:g} from layer {chosen}")
            continue
        outcome.worst = max(outcome.worst, error)
        outcome.chosen.append(chosen)
        token = logprobs[output_ids[i]]
        if token < LOWEST or (temperature == 0 and token < logprobs.max() - TOLERANCE):
            outcome.faults.append(f"step {i}: token {output_ids[i]} of log-probability {token}, top {logprobs.max()}")
    return outcome


@dataclass(frozen=True)
class Soft:
    """What a soft request asked for."""

    temperature: float = 0.0
    max_topk: int = 10
    early_stop_entropy: float = 0.01
    early_stop_length: int = 256
    filters_first: bool = False
    filters: dict[str, float] = field(default_factory=dict)  # top_k, top_p, min_p
    gumbel_temperature: float = 0.0  # 0: no noise
    edits: Query = field(default_factory=Query)  # its penalties and bias

    @property
    def tau(self) -> float:
        return self.temperature or 1.0


@dataclass
class SoftRun:
    """A whole generation: what should have been reported and from what."""

    output_ids: list[int] = field(default_factory=list)
    logprobs: list[Array] = field(default_factory=list)  # (V,) each
    is_thinking: list[bool] = field(default_factory=list)
    num_mixed: list[int] = field(default_factory=list)  # embeddings with weight above 1 % in the next input
    num_low: int = 0  # low-entropy steps in a row


class Oracle64:
    """The model fed embeddings, with its keys and values."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.embeddings: torch.Tensor = model.get_input_embeddings().weight.detach()  # (V, H)
        self.cache: Any = None

    @torch.no_grad()
    def feed(self, inputs: torch.Tensor) -> Array:
        """(T, H) -> logits (T, V)."""
        outputs = self.model(inputs_embeds=inputs[None], past_key_values=self.cache, use_cache=True)
        self.cache = outputs.past_key_values
        return np.asarray(outputs.logits[0].double().numpy())

    def blend(self, ids: Any, weights: Array) -> torch.Tensor:
        return torch.from_numpy(weights) @ self.embeddings[torch.from_numpy(ids)]


@dataclass(frozen=True)
class SoftCase:
    """A soft request and what decides its tokens."""

    prompt_ids: list[int]
    query: Soft
    markers: tuple[int, int]
    uniforms: Uniforms | None = None
    fault: Fault = Fault()

    def noise(self, i: int) -> Array | None:
        return self.uniforms(len(self.prompt_ids) + i - 1 + self.fault.noise_shift) if self.uniforms else None

    def thinks(self, output_ids: list[int]) -> bool:
        return is_thinking(self.prompt_ids + output_ids, *self.markers)

    def next_input(self, model: Oracle64, logprobs: Array, i: int, thinking: bool, token: int) -> torch.Tensor:
        """What follows a thinking step is the mixture, unless the step closed the phase."""
        if not thinking or token == self.markers[1] or self.fault.plain_inputs:
            return model.embeddings[token]
        ids, weights, _ = mixture(logprobs, self.query, self.noise(i))
        weights = weights**self.fault.weight_power
        return model.blend(ids, weights / weights.sum())

    def add_step(self, run: SoftRun, logits: Array, served: int | None) -> int:
        """The token that should be reported. served: taken where the engine samples, and to settle near-ties."""
        logits = adjusted(logits, lagging(self.prompt_ids, run.output_ids), self.query.edits)
        logprobs = log_softmax(logits / self.query.tau)
        thinking = self.thinks(run.output_ids)
        ids, weights, posterior_entropy = mixture(logprobs, self.query, self.noise(len(run.output_ids)))
        run.num_low = run.num_low + 1 if posterior_entropy < self.query.early_stop_entropy else 0
        token = int(ids[0]) if thinking else int(logits.argmax())
        if thinking and run.num_low >= self.query.early_stop_length:
            token = self.markers[1]
        elif served is not None:
            is_tie = thinking and served in ids[weights >= weights[0] - TOLERANCE]
            is_sampled = not thinking and self.query.temperature > 0
            token = served if is_tie or is_sampled else token
        run.output_ids.append(token)
        run.logprobs.append(logprobs)
        run.is_thinking.append(thinking)
        run.num_mixed.append(int((weights > 0.01).sum()) if thinking else 1)
        return token


def soft_run(model: Any, case: SoftCase, reported: list[Array], output_ids: list[int]) -> SoftRun:
    """Each step again, from the inputs that the served distributions (V,) before it give.

    Not from recomputed ones: what a mixture is wrong by goes into the next, so that float32's error doubles at about
    every step with a model as sharp as this. `free_run` does that.
    """
    oracle, run = Oracle64(model), SoftRun()
    phases = [case.thinks(output_ids[:i]) for i in range(len(output_ids))]
    inputs = [
        case.next_input(oracle, logprobs, i, thinking, token)
        for i, (logprobs, thinking, token) in enumerate(zip(reported, phases, output_ids, strict=True))
    ]
    logits = oracle.feed(torch.cat([oracle.embeddings[case.prompt_ids], torch.stack(inputs[:-1])]))
    for row, token in zip(logits[len(case.prompt_ids) - 1 :], output_ids, strict=True):
        case.add_step(run, row, token)
    return run


def free_run(model: Any, case: SoftCase, num_tokens: int) -> SoftRun:
    """Step by step from the prompt alone."""
    oracle, run = Oracle64(model), SoftRun()
    inputs = oracle.embeddings[case.prompt_ids]
    for i in range(num_tokens):
        token = case.add_step(run, oracle.feed(inputs)[-1], None)
        inputs = case.next_input(oracle, run.logprobs[i], i, run.is_thinking[i], token)[None]
    return run


def mixture(logprobs: Array, query: Soft, noise: Array | None) -> tuple[Any, Array, float]:
    """Ids and weights, heaviest first, and the entropy of the whole posterior, temperature included."""
    ids = np.argsort(-logprobs, kind="stable")[: query.max_topk]
    if query.filters_first:
        ids = ids[: num_kept(np.exp(logprobs[np.argsort(-logprobs, kind="stable")]), **query.filters)]
    scores = logprobs[ids]
    if noise is not None:
        scores = (scores - np.log(-np.log(noise[: len(ids)]))) / query.gumbel_temperature
        order = np.argsort(-scores, kind="stable")
        ids, scores = ids[order], scores[order]
    return ids, softmax(scores), entropy(np.exp(logprobs))


def num_kept(probs: Array, top_k: float = 1 << 30, top_p: float = 1.0, min_p: float = 0.0) -> int:
    """Of probabilities in falling order: what top-k leaves, of that what top-p leaves, of that what min-p leaves."""
    left = probs[: int(top_k)]
    before = (left.cumsum() - left) / left.sum()
    return max(1, int(((before < top_p) & (left >= min_p * left[0])).sum()))


def compare_soft(run: SoftRun, reported: list[Array], output_ids: list[int]) -> Outcome:
    """Every reported token, and the final layer's distribution of every step: it depends on all mixtures before."""
    outcome = Outcome(num_steps=len(output_ids))
    for i, (served, expected) in enumerate(zip(output_ids, run.output_ids, strict=True)):
        if served != expected:
            outcome.faults.append(f"step {i}: token {served}, recomputed {expected}")
    for i, (logprobs, expected_logprobs) in enumerate(zip(reported, run.logprobs, strict=True)):
        error = distance(logprobs, expected_logprobs)
        if error > TOLERANCE:
            outcome.faults.append(f"step {i}: log-probabilities differ by {error:g}")
        else:
            outcome.worst = max(outcome.worst, error)
    return outcome
