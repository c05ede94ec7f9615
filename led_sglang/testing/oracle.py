"""LED worked out again from token ids, with transformers in float64: knows nothing of the rest of led_sglang or SGLang.

One forward pass over prompt and output gives every layer at every position. From there each generated token's traced
values are recomputed with the paper's equations (arXiv 2602.01698) and compared with what the server reported.
Shapes: T positions, V tokens, H hidden size, L layers, J latent layers of a step, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TIE", "TOLERANCE", "Comparison", "Layers", "Oracle", "Query", "Step", "entropy", "forward",
    "is_thinking", "softmax",
]  # fmt: skip

Array = NDArray[np.float64]
Edit = Callable[[Array, list[int]], Array]

TOLERANCE = 1e-3  # of every traced number
TIE = 1e-4  # two probabilities or entropies this close may change places in float32


@dataclass(frozen=True)
class Query:
    """What a request asks for, as far as a step's numbers depend on it (docs/api.md). The defaults are the paper's."""

    temperature: float = 0.6  # 0 = greedy
    depth: int = 8
    top_k: int = 8
    phase: str = "think"
    exploit: bool = True
    latent_norm: bool = False
    normalize_layers: bool = False
    latent_offset: int = 0
    min_p: float = 0.0

    @property
    def tau(self) -> float:
        return self.temperature if self.temperature > 0 else 1.0


@dataclass(frozen=True)
class Layers:
    """One forward pass: row t predicts the token after position t."""

    final_logits: Array  # (T, V)
    hidden: Array  # (L + 1, T, H): hidden[l] is h^l, the residual stream after layer l (1-based); 0 = embeddings
    head: Array  # (V, H)
    normed: Array  # (L + 1, T, H): the same after the final norm


def forward(model: Any, ids: list[int]) -> Layers:
    """model: a causal LM of transformers in float64 whose head is `lm_head` and whose final norm is `model.norm`."""
    import torch

    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        # The last of transformers' hidden_states is normed already; h^L itself is never needed: its use shows as NaN.
        hidden = torch.stack(outputs.hidden_states)[:, 0].double()
        hidden[-1] = torch.nan
        assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits), "logits are not the head's alone"
        head, normed = model.lm_head.weight.double().numpy(), model.model.norm(hidden).numpy()
        return Layers(outputs.logits[0].double().numpy(), hidden.numpy(), head, normed)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def entropy(probs: Array) -> float:
    """In nats."""
    positive = probs[probs > 0]
    return float(-(positive * np.log(positive)).sum())


def is_thinking(ids: Sequence[int], open_id: int, close_id: int) -> bool:
    """By whichever marker came last."""
    return next((token == open_id for token in reversed(ids) if token in (open_id, close_id)), False)


@dataclass(frozen=True)
class Step:
    """One generated token's distributions, over the full vocabulary."""

    final: Array  # (V,) p^L
    latents: Array  # (J, V) p^{L-1}, p^{L-2}, ...

    def aggregates(self, candidate_ids: list[int], normalize_layers: bool) -> Array:
        """(J + 1, K): the candidates' distribution for each depth (Eq. 4)."""
        layers = np.concatenate([self.final[None], self.latents])[:, candidate_ids]
        if normalize_layers:
            layers = layers / layers.sum(-1, keepdims=True)
        sums = layers.cumsum(0)
        return np.asarray(sums / sums.sum(-1, keepdims=True))


@dataclass
class Comparison:
    """Where the server's numbers are not the recomputed ones: `faults`, a line each."""

    faults: list[str] = field(default_factory=list)
    num_steps: int = 0
    num_active: int = 0  # of them, inside LED's phase
    num_explored: int = 0
    worst: float = 0.0  # the largest error within TOLERANCE
    depths: list[int] = field(default_factory=list)

    def near(self, name: str, reported: float, expected: float) -> None:
        error = abs(reported - expected)
        is_near = error <= TOLERANCE  # never of a NaN
        self.holds(f"{name}: the server reported {reported}, recomputed {expected}", is_near)
        self.worst = max(self.worst, error) if is_near else self.worst

    def same(self, name: str, reported: object, expected: object) -> None:
        self.holds(f"{name}: the server reported {reported}, recomputed {expected}", reported == expected)

    def holds(self, name: str, is_true: bool) -> None:
        if not is_true:
            self.faults.append(name)

    def add(self, other: Comparison) -> None:
        for name in ("faults", "depths", "num_steps", "num_active", "num_explored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst = max(self.worst, other.worst)


COLUMNS = (  # `led_...` of a trace
    *("think", "explored", "depth", "confidence", "entropy", "depth_entropy", "logprob"),
    *("candidates", "exploit", "explore"),
)


@dataclass(frozen=True)
class Oracle:
    """The server's checkpoint in transformers, against which traces are held.

    model: see `forward`. markers: the ids that open and close the thinking phase (a sequence of several ids is not
    known here). edit: what the engine does to the logits (V,) of any layer, given the ids generated before; None is
    nothing. A test of the test overrides a method with a deliberate fault, which `compare` then must report.
    """

    model: Any
    markers: tuple[int, int]
    edit: Edit | None = None

    @classmethod
    def load(cls, folder: Path | str, markers: tuple[int, int]) -> Oracle:
        """Raises what transformers raises for a folder that holds no causal LM."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        return cls(model.eval(), markers)

    def compare(
        self, prompt_ids: list[int], output_ids: list[int], trace: Mapping[str, Any], query: Query
    ) -> Comparison:
        """Every traced value of every generated token. trace: the answer's `meta_info`."""
        result, layers = Comparison(), forward(self.model, prompt_ids + output_ids)
        for column in COLUMNS:
            result.same(f"number of led_{column}", len(trace[f"led_{column}"]), len(output_ids))
        if result.faults:
            return result
        for i, token in enumerate(output_ids):
            reported = {column: trace[f"led_{column}"][i] for column in COLUMNS}
            before = output_ids[:i]
            thinking = is_thinking(prompt_ids + before, *self.markers)
            result.num_steps += 1
            result.same(f"token {i} think", reported["think"], thinking)
            if thinking or query.phase == "all":
                step = self.step(layers, len(prompt_ids) + i - 1, before, query)
                compare_step(result, f"token {i}", step, reported, token, query)
                continue
            for column in COLUMNS[1:]:
                expected = False if column == "explored" else None
                result.same(f"token {i} {column} outside the phase", reported[column], expected)
        return result

    def step(self, layers: Layers, row: int, before: list[int], query: Query) -> Step:
        """before: the ids generated before this step's."""
        latents = [self.posterior(logits, before, query.tau) for logits in self.latent_logits(layers, row, query)]
        final = softmax(self.edited(layers.final_logits[row], before) / query.tau)
        return Step(final, np.array(latents).reshape(-1, len(final)))

    def latent_logits(self, layers: Layers, row: int, query: Query) -> Array:
        """(J, V), latest layer first."""
        first = len(layers.hidden) - 2 - query.latent_offset  # h^{L-1}, or earlier
        stream = layers.normed if query.latent_norm else layers.hidden
        return np.asarray(stream[[first - j for j in range(query.depth - 1)], row] @ layers.head.T)

    def edited(self, logits: Array, before: list[int]) -> Array:
        return self.edit(logits, before) if self.edit else logits

    def posterior(self, logits: Array, before: list[int], tau: float) -> Array:
        """(V,): edited, and normalised by the larger of the sums with and without the edits."""
        edited = self.edited(logits, before)
        peak = max(logits.max(), edited.max())
        weights = np.exp((edited - peak) / tau)
        return np.asarray(weights / max(np.exp((logits - peak) / tau).sum(), weights.sum()))


def compare_step(
    result: Comparison, where: str, step: Step, reported: Mapping[str, Any], token: int, query: Query
) -> None:
    if reported["candidates"] is None:
        result.faults.append(f"{where}: nothing traced inside the phase")
        return
    result.num_active += 1
    result.num_explored += reported["explored"]
    result.depths.append(reported["depth"])
    pairs = zip(reported["candidates"], reported["exploit"], strict=True)
    kept = [c for c, p in pairs if p > 0 or not query.min_p]  # p may underflow; only min_p drops candidates here
    _compare_candidates(result, where, step.final, kept, query)
    confidence = float(step.final.max())
    result.near(f"{where} confidence", reported["confidence"], confidence)
    aggregates = step.aggregates(kept, query.normalize_layers)
    entropies = np.array([entropy(row) for row in aggregates])
    # The server's depth must be one of maximal entropy; its own choice is then followed.
    if not 1 <= reported["depth"] <= len(aggregates):
        result.faults.append(f"{where}: depth {reported['depth']} of {len(aggregates)}")
        return
    chosen = reported["depth"] - 1
    is_largest = entropies[chosen] >= entropies.max() - TIE
    result.holds(f"{where}: depth {reported['depth']}, entropies {entropies}", is_largest)
    result.near(f"{where} entropy", reported["entropy"], float(entropies[chosen]))
    result.same(f"{where} number of depth_entropy", len(reported["depth_entropy"]), len(entropies))
    for j, (value, expected) in enumerate(zip(reported["depth_entropy"], entropies, strict=False)):
        result.near(f"{where} depth_entropy[{j}]", value, float(expected))
    branches = {"exploit": aggregates[0], "explore": aggregates[chosen]}
    for name, probs in branches.items():
        values = dict(zip(reported["candidates"], reported[name], strict=True))
        for j, (candidate, expected) in enumerate(zip(kept, probs, strict=True)):
            result.near(f"{where} {name}[{j}]", values.pop(candidate, np.nan), float(expected))
        result.holds(f"{where}: dropped candidates keep probability in {name}", not any(values.values()))
    if token not in kept:
        result.faults.append(f"{where}: {token} is none of the candidates {kept}")
        return
    # The token can come from the branch that was reported, and log p_LED is that of the token with the coin summed out.
    if not query.exploit:
        result.same(f"{where} explored without exploit branch", reported["explored"], True)
    branch, at = branches["explore" if reported["explored"] else "exploit"], kept.index(token)
    result.holds(f"{where}: token of probability {branch[at]}", branch[at] > 0)
    if query.temperature == 0:
        result.holds(f"{where}: greedy, but not the arg-max of its branch", branch[at] >= branch.max() - TIE)
    share = confidence if query.exploit else 0.0
    led_prob = share * branches["exploit"][at] + (1 - share) * branches["explore"][at]
    result.near(f"{where} logprob", reported["logprob"], float(np.log(led_prob)))


def _compare_candidates(result: Comparison, where: str, final: Array, kept: list[int], query: Query) -> None:
    """The k most probable, in order, but for near-ties; none below min_p, none left out above it."""
    probs, floor = final[kept], query.min_p * final.max()
    others = np.delete(final, kept)
    others = others[others > floor * (1 + TIE)]
    result.holds(f"{where}: candidate twice in {kept}", len(set(kept)) == len(kept))
    result.holds(f"{where}: {len(kept)} candidates", 1 <= len(kept) <= query.top_k)
    result.holds(f"{where}: candidates out of order {probs}", bool((np.diff(probs) <= TIE).all()))
    result.holds(f"{where}: candidate below min_p", bool((probs >= floor * (1 - TIE)).all()))
    if len(others):
        least = probs.min() + TIE if len(kept) == query.top_k else 0.0
        result.holds(f"{where}: {others.max()} is none of the candidates {probs}", bool(others.max() <= least))
