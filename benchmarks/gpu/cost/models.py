"""Shapes of the models whose steps are the measure, and the budget: 2 % of a decode step that reads what it must."""

from dataclasses import dataclass

from benchmarks.gpu.cost.device import PEAK_BYTES_PER_S

SHARE = 0.02
CONTEXT = 2048  # tokens of each request
ELEMENT_BYTES = 2  # bfloat16
ROWS = (1, 8, 32, 48, 64, 256)
# Microseconds of one rank that issue 22 states for this model; a step between them, and other models, by bytes.
STATED_BUDGETS = {("Qwen3-4B", 1): 34.0, ("Qwen3-4B", 8): 40.0, ("Qwen3-4B", 64): 114.0, ("Qwen3-4B", 256): 360.0}


@dataclass(frozen=True)
class Model:
    """From the model's config.json."""

    name: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert, where there are experts
    vocab: int
    is_tied: bool
    num_experts: int = 1
    experts_per_token: int = 1

    def step_bytes(self, num_rows: int) -> float:
        """What a decode step of so many requests reads: weights, of experts those that some row picks, and the context.

        A row picks its experts as if by chance. The embedding is read for its rows alone.
        """
        unpicked = (1 - self.experts_per_token / self.num_experts) ** num_rows
        experts = self.num_experts * (1 - unpicked)
        attention = self.hidden * self.head_dim * 2 * (self.query_heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate * experts
        context = num_rows * CONTEXT * 2 * self.kv_heads * self.head_dim
        return ELEMENT_BYTES * (self.layers * (layer + context) + self.vocab * self.hidden)

    def budget_us(self, num_rows: int, tp: int) -> float:
        """SHARE of a step on so many ranks, each of which reads its part; collectives are not counted for it."""
        stated = STATED_BUDGETS.get((self.name, num_rows))
        whole = 1e6 * SHARE * self.step_bytes(num_rows) / PEAK_BYTES_PER_S if stated is None else stated
        return whole / tp


MODELS = {
    model.name: model
    for model in (
        Model("Qwen3-4B", 36, 2560, 32, 8, 128, 9728, 151936, True),
        Model("Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 768, 151936, False, num_experts=128, experts_per_token=8),
        Model("QwQ-32B", 64, 5120, 40, 8, 128, 27648, 152064, False),
    )
}
