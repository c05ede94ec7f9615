"""Whether a backend does here what plain torch does: asked once, at start, of kernels compiled for this machine."""

import torch
from torch import Tensor

from led_sglang.ops import Head, LedRows, LedStep, Noise, led_step
from led_sglang.ops.backends import one_pass

NUM_ROWS, NUM_LAYERS, TOP_K, VOCAB, HIDDEN = 37, 7, 8, 5003, 192
# What probabilities may differ by: rounding of the logits, which plain torch does in the model's dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def fault_of(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` is not to be used on the device for a head of the dtype; None: nothing was found.

    A small step of random rows, in both forms, against "eager". Raises nothing.
    """
    try:
        case = _Case(device, dtype)
        truth = case.step("eager")
        for form in ("coin_first", "one_pass"):
            found = case.step(backend) if form == "coin_first" else case.step_of_one_pass(backend)
            error = difference_of(found, truth)
            if not error <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
                return f"its {form} form differs from plain torch by {error:.2g} in probability"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class _Case:
    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.head = Head((normal(VOCAB, HIDDEN) / HIDDEN**0.5).to(dtype), VOCAB)
        self.states = (2 * normal(NUM_LAYERS + 1, NUM_ROWS, HIDDEN)).to(dtype)
        self.logits = (self.states[0] @ self.head.weight.T).float()
        row = torch.arange(NUM_ROWS, device=device)
        is_row = row >= 0
        self.rows = LedRows(
            active=row % 5 > 0,
            depth=row % NUM_LAYERS + 2,
            top_k=row % TOP_K + 1,
            temperature=0.3 + row / NUM_ROWS,
            greedy=row % 11 == 0,
            exploit=row % 7 > 0,
            latent_norm=~is_row,
            normalize_layers=row % 2 == 0,
            latent_offset=0 * row,
            min_p=(row % 3 == 0) * 0.02,
            full=is_row,
            any_full=True,
            max_depth=NUM_LAYERS + 1,
            max_top_k=TOP_K,
            any_norm=False,
            all_norm=False,
            any_offset=False,
        )
        coin, token = torch.rand(2, NUM_ROWS, generator=generator, dtype=torch.float64).to(device)
        self.noise = Noise(coin, token)

    def step(self, backend: str, **more: object) -> LedStep:
        latents = self.states[1:]
        return led_step(self.logits, latents, self.head, self.rows, self.noise, backend=backend, **more)  # type: ignore[arg-type]

    def step_of_one_pass(self, backend: str) -> LedStep:
        rows, latents = self.rows, self.states[1:]
        wanted = one_pass.wanted_rows(rows, self.noise.coin, one_pass.CUT)
        normalizers = torch.zeros(latents.shape[:2], device=self.logits.device)
        one_pass.head_pass(self.states[0], latents, self.head, one_pass.row_tau(rows), wanted, normalizers, backend)
        return self.step(backend, ridden=one_pass.ridden_of(rows, normalizers, wanted, one_pass.CUT))


def difference_of(found: LedStep, truth: LedStep) -> float:
    """Largest difference of a probability; infinite where rows that must agree do not."""
    same = found.depth == truth.depth  # two depths of all but equal entropy may be told apart either way
    if not torch.equal(found.explored, truth.explored) or not torch.equal(found.ok, truth.ok):
        return float("inf")
    if not same.float().mean() >= 0.8:
        return float("inf")
    pairs = (found.exploit_probs, truth.exploit_probs), (found.explore_probs, truth.explore_probs)
    return max((one - other)[same].abs().max().item() for one, other in pairs)
