"""Whether a backend does here what plain torch does: asked at start, of kernels compiled for this machine.

The truth is "eager" with logits that nothing rounded: what a product in the model's dtype rounds is far more than what
a kernel with float32 sums may differ by, and would hide a probability that is wrong by a factor of two.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import log

import torch
from torch import Tensor

from led_sglang.ops import backend_for, led_step
from led_sglang.ops.backend import Backend
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.lm_head import scale_and_cap
from led_sglang.ops.types import Head, KnownLse, LedRows, LedStep, StepInputs

NUM_ROWS, NUM_LAYERS, TOP_K, VOCAB, HIDDEN = 37, 7, 8, 5003, 192
# What probabilities, and entropies in nats, may differ by. The kernels' float32 sums differ by 4e-7 in every dtype;
# plain torch, which rounds its logits, by 2e-3 in bfloat16 and 1.4e-4 in float16. Layers' probabilities that are wrong
# by a factor of two show as 2e-2 and more.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 3e-3}
CHUNK = 4096  # rows of a head that are widened at once
NUM_LIKELY = 6
MANY_CANDIDATES = 40  # more than the kernels select themselves
MANY_ROWS = 64  # more latent rows than this take the kernels' larger tile


def fault_of(backend: str | Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` is not to be used on the device for a head of the dtype; None: nothing was found.

    A small step with a random head, in both forms, against plain torch. Raises nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def case() -> Case:
        weight = torch.randn(VOCAB, HIDDEN, generator=generator) / HIDDEN**0.5
        shape = NUM_LAYERS + 1, NUM_ROWS, HIDDEN
        return Case.of(Head(weight.to(device, dtype), VOCAB), shape, dtype, TOP_K, generator)

    return _fault(backend, case)


def fault_with(backend: str | Backend, head: Head, latents: Tensor, max_top_k: int) -> str | None:
    """The same for the head that is served, or this rank's rows of it, with a few rows.

    latents: (D, any, H), of which shape and dtype are taken and nothing else. Many candidates in a small batch, few in
    a larger one, so that both tiles of the kernels run. Makes no collective. Raises nothing.
    """
    own = replace(head, first_id=0, all_gather=None, lse_copy=None)
    fault = _fault_with("the head that is served", backend, own, latents, max_top_k)
    if fault is None and head.lse_copy is not None:
        some = min(CHUNK, head.num_rows)  # as its weight, what the copy says
        bias = None if head.bias is None else head.bias[:some]
        decoded = head.lse_copy.decoded(0, some, head.weight.dtype)
        copied = replace(own, weight=decoded, num_rows=some, bias=bias, lse_copy=head.lse_copy.first(some))
        fault = _fault_with("the copy of the head in 8 bits", backend, copied, latents, max_top_k)
    return fault


def _fault_with(what: str, backend: str | Backend, head: Head, latents: Tensor, max_top_k: int) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for num_rows, top_k in ((4, MANY_CANDIDATES), (MANY_ROWS // max(len(latents), 1) + 1, TOP_K)):
        top_k = min(top_k, max_top_k, head.num_rows)

        def case(num_rows: int = num_rows, top_k: int = top_k) -> Case:
            shape = len(latents) + 1, num_rows, latents.shape[2]
            return Case.of(head, shape, latents.dtype, top_k, generator)

        fault = _fault(backend, case)
        if fault is not None:
            return f"with {what}, {fault}"
    return None


def _fault(named: str | Backend, make: Callable[[], "Case"]) -> str | None:
    try:
        case = make()
        backend = backend_for(named, case.logits.device) if isinstance(named, str) else named
        truth, allowed = case.truth(), TOLERANCE.get(case.dtype, TOLERANCE[torch.bfloat16])
        for form in ("coin_first", "one_pass"):
            if form == "one_pass" and not case.can_one_pass:
                continue
            found = case.step(backend) if form == "coin_first" else case.step_of_one_pass(backend)
            for what, error in (
                ("probability", difference_of(found, truth)),
                ("nats of entropy", entropy_difference_of(found, truth)),
            ):
                if not error <= allowed:
                    return f"its {form} form differs from plain torch by {error:.2g} in {what}; {allowed:g} is allowed"
        if case.can_one_pass:
            error, allowed = case.product_error(backend), max(torch.finfo(case.dtype).eps, 1e-5)
            if not error <= allowed:
                return f"its head product differs from plain torch by {error:.2g} of itself; {allowed:.2g} is allowed"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class Case:
    """One step: R rows that differ in everything they may ask for."""

    head: Head
    states: Tensor  # (D + 1, R, H), the last layer first, in the model's dtype
    logits: Tensor  # (R, V) float32
    rows: LedRows
    inputs: StepInputs

    @classmethod
    def of(
        cls, head: Head, shape: tuple[int, int, int], dtype: torch.dtype, top_k: int, generator: torch.Generator
    ) -> "Case":
        """shape: (D + 1, R, H)."""
        num_layers, num_rows, device = shape[0] - 1, shape[1], head.weight.device
        states = likely_states(head, shape, generator).to(dtype)
        row = torch.arange(num_rows, device=device)
        rows = LedRows.uniform(
            num_rows,
            depth=num_layers + 1 - row % max(num_layers, 1),
            top_k=top_k - row % top_k,
            device=device,
            temperature=0.6 + row / num_rows,
            greedy=row % 11 == 10,
            exploit=row % 7 > 0,
            normalize_layers=row % 2 == 1,
            min_p=(row % 3 == 2) * 0.02,
            trace=True,
        )
        uniforms = torch.rand(2, num_rows, generator=generator, dtype=torch.float64).to(device)
        product = head.project or partial(unrounded_product, head)
        logits = scale_and_cap(product(states[0])[:, : head.num_rows].float(), head)
        return cls(head, states, logits, rows, StepInputs(row % 5 < 4, *uniforms))

    @property
    def dtype(self) -> torch.dtype:
        return self.states.dtype

    @property
    def can_one_pass(self) -> bool:
        return self.head.project is None and len(self.states) > 1

    def truth(self) -> LedStep:
        project = self.head.project or partial(unrounded_product, self.head)
        return replace(self, head=replace(self.head, project=project)).step("eager")

    def step(self, backend: str | Backend, known_lse: KnownLse | None = None) -> LedStep:
        latents = self.states[1:]
        return led_step(self.logits, latents, self.head, self.rows, self.inputs, backend=backend, known_lse=known_lse)

    def step_of_one_pass(self, backend: Backend) -> LedStep:
        mask = one_pass.one_pass_mask(self.rows, self.inputs, one_pass.COIN_THRESHOLD)
        lse = torch.zeros(self.states[1:].shape[:2], device=self.logits.device)
        self._head_pass(backend, mask, lse)
        return self.step(backend, one_pass.known_lse_of(self.rows, lse, mask, one_pass.COIN_THRESHOLD))

    def product_error(self, backend: Backend) -> float:
        """Of the final rows' product, relative to its largest entry."""
        truth = unrounded_product(replace(self.head, bias=None), self.states[0])
        lse = torch.zeros(self.states[1:].shape[:2], device=self.logits.device)
        product = self._head_pass(backend, torch.ones_like(self.inputs.active), lse)
        return float((product - truth).abs().max() / truth.abs().max())

    def _head_pass(self, backend: Backend, mask: Tensor, lse: Tensor) -> Tensor:
        return backend.head_pass(self.states[0], self.states[1:], self.head, self.rows.tau, mask, lse)


def likely_states(head: Head, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(layers, R, H): all layers of a row like the same tokens of the head's, each in its own order.

    States of random numbers would like no token of a large vocabulary more than the final layer's candidates' share of
    it, and whatever a kernel made of them would be too little to be seen.
    """
    num_layers, num_rows, _ = shape
    count = min(NUM_LIKELY, head.num_rows)
    if head.project is not None:  # its weight cannot be read
        return torch.randn(shape, generator=generator).to(head.weight.device)
    tokens = torch.randint(head.num_rows, (num_rows, count), generator=generator).to(head.weight.device)
    directions = head.weight[tokens].double()  # (R, n, H)
    mask = torch.randn(num_layers, num_rows, count, generator=generator).double() + log(head.num_rows)
    strength = mask.to(directions.device) / (directions.square().sum(-1) * head.scale).clamp_min(1e-30)
    return torch.einsum("lrn,rnh->lrh", strength, directions)


def unrounded_product(head: Head, rows: Tensor) -> Tensor:
    """(N, H) -> (N, V_shard) float64: the head's product and bias, of its weight as it is."""
    wide = rows.double()
    products = torch.cat([wide @ part.double().T for part in torch.split(head.weight, CHUNK)], 1)
    return products if head.bias is None else products + head.bias.double()


def difference_of(found: LedStep, truth: LedStep) -> float:
    """Largest difference of a probability; infinite where rows that must agree do not."""
    same = found.depth == truth.depth  # two depths of all but equal entropy may be picked either way
    if not torch.equal(found.explored, truth.explored) or not torch.equal(found.ok, truth.ok):
        return float("inf")
    if not same.float().mean() >= 0.8:
        return float("inf")
    pairs = (found.exploit_probs, truth.exploit_probs), (found.explore_probs, truth.explore_probs)
    return max((one - other)[same].abs().max().item() for one, other in pairs)


def entropy_difference_of(found: LedStep, truth: LedStep) -> float:
    """Of the aggregates at the depths that both found, in nats: 0 where they found the same one; rows with `trace`.

    A row whose depth is another one must at least have the entropy that it should have had, or nearly so.
    """
    assert truth.depth_entropy is not None
    picked = torch.stack([found.depth, truth.depth], 1) - 1
    entropies = truth.depth_entropy.gather(1, picked)
    return float((entropies[:, 0] - entropies[:, 1]).abs().max())
