"""Device memory that LED and its capture take beside the engine's, told before it is taken.

SGLang has divided the memory before LED allocates: what is here comes out of what `--mem-fraction-static` leaves.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from led_sglang.config.fields import MAX_SOFT_TOP_K
from led_sglang.config.methods import METHOD_TABLE, captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.ops.types import ALIGNMENT

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

MB, GB = 10**6, 10**9
STEP_BYTES = 64 << 20  # the bound that tests/unit/ops hold for the LED step
LOGIT_COPIES = 6  # float32 copies of a row's logits that a method that rewrites them holds at once
MAX_SLOTS = 4096  # SGLang's own ceiling where --max-running-requests does not say
TILE_COLUMNS = 128  # of the LM head: a latent row's partial sums are one number for each


@dataclass(frozen=True)
class GraphSizes:
    """The largest CUDA graphs; 0 where there are none."""

    decode_rows: int = 0
    prefill_tokens: int = 0

    @classmethod
    def of(cls, args: Any) -> "GraphSizes":
        """args: resolved server arguments, as `support.in_effect` gives them."""
        config = getattr(args, "cuda_graph_config", None)
        return cls(_largest(getattr(config, "decode", None)), _largest(getattr(config, "prefill", None)))


def _largest(phase: Any) -> int:
    if phase is None or phase.backend == "disabled":
        return 0
    return max([*(phase.bs or ()), phase.max_bs or 0])


@dataclass(frozen=True)
class Sizes:
    """What the memory depends on."""

    max_rows: int  # of the capture buffer, token rows
    hidden_size: int
    vocab_size: int
    itemsize: int  # bytes of an element of the hidden states
    graphs: GraphSizes
    eager_tokens: int = 0  # of the largest prefill that no graph runs


def eager_tokens_of(args: Any, graphs: GraphSizes) -> int:
    """args: as in `GraphSizes.of`."""
    chunk = getattr(args, "chunked_prefill_size", None) or 0
    most = chunk if chunk > 0 else (getattr(args, "max_prefill_tokens", None) or 0)
    return most if most > graphs.prefill_tokens else 0


def tokens_per_request_of(server_args: "ServerArgs") -> int:
    """The most token rows of a request in a step: more than one where draft tokens are verified."""
    if not getattr(server_args, "speculative_algorithm", None):
        return 1
    from sglang.srt.arg_groups.overrides import max_speculative_num_draft_tokens

    return max_speculative_num_draft_tokens(server_args) or 1


def rows_of(num_slots: int, graphs: GraphSizes, tokens_per_request: int = 1) -> int:
    """Rows of the tables that hold one for each token row of a batch or a graph."""
    most = max(num_slots + 1, graphs.decode_rows) * tokens_per_request
    return -(-most // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for, in the order in which they are taken."""

    parts: dict[str, int]
    max_rows: int
    has_graphs: bool = True

    @property
    def num_bytes(self) -> int:
        return sum(self.parts.values())

    def text(self) -> str:
        parts = ", ".join(f"{name} {_text(size)}" for name, size in self.parts.items() if size)
        return f"{_text(self.num_bytes)} of device memory for batches of up to {self.max_rows} rows ({parts})"

    def to_dict(self) -> dict[str, int]:
        return {**{name.replace(" ", "_"): size for name, size in self.parts.items()}, "total": self.num_bytes}


def _text(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB else f"{num_bytes / MB:.1f} MB"


def memory_plan(config: ServerConfig, sizes: Sizes) -> MemoryPlan:
    """Of a resolved configuration. The buffer and the soft tables are exact, the rest are upper bounds.

    capture buffer: (layers, max_rows, H). A decode graph adds into it without a copy.
    rows of prefill graphs, of eager prefills: the sampled rows of one layer's output and of its residual stream.
    soft tables: ids, weights and state of each slot. soft mixtures: the embeddings of every row's candidates, as the
        model's and twice as float32.
    step: all latent rows of the largest batch and their partial sums, or more. fp8 head: as if one rank had all of it.
        logits of methods: the copies of those that rewrite them.
    """
    num_layers = len(captured_layers(config))
    row = sizes.hidden_size * sizes.itemsize if num_layers else 0
    latent_row = sizes.hidden_size * sizes.itemsize + 4 * -(-sizes.vocab_size // TILE_COLUMNS)
    is_soft = any(METHOD_TABLE[method].feeds_mixtures for method in config.methods)
    mixed_rows = sizes.graphs.decode_rows or sizes.max_rows
    slot = MAX_SOFT_TOP_K * (8 + 4) + 1 + 8
    mixture = MAX_SOFT_TOP_K * sizes.hidden_size * (sizes.itemsize + 2 * 4)
    rewrites = any(METHOD_TABLE[method].rewrite for method in config.methods)
    parts = {
        "capture buffer": num_layers * row * sizes.max_rows,
        "rows of prefill graphs": 2 * row * min(sizes.graphs.prefill_tokens, sizes.max_rows),
        "rows of eager prefills": 2 * row * min(sizes.eager_tokens, sizes.max_rows),
        "soft tables": is_soft * slot * sizes.max_rows,
        "soft mixtures": is_soft * mixture * mixed_rows,
        "step": max(STEP_BYTES, num_layers * sizes.max_rows * latent_row),
        "fp8 head": (config.head_lse == "fp8") * sizes.vocab_size * (sizes.hidden_size + 4),
        "logits of methods": rewrites * LOGIT_COPIES * 4 * sizes.vocab_size * sizes.max_rows,
    }
    return MemoryPlan(parts, sizes.max_rows, sizes.graphs != GraphSizes())


def shortage(plan: MemoryPlan, num_free: int) -> str | None:
    """What to say where so many bytes are left; None where they are enough."""
    if plan.num_bytes <= num_free:
        return None
    return (
        f"LED may take {_text(plan.num_bytes)} of device memory, {_text(num_free)} are left by SGLang: lower "
        f"--mem-fraction-static, --led-max-depth or --max-running-requests"
    )


def num_free_bytes(device: torch.device) -> int | None:
    """Of the device now; None for a CPU, whose memory nobody has divided."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def memory_of_check(config: ServerConfig, server_args: "ServerArgs") -> tuple[MemoryPlan, str | None]:
    """What a start with these resolved arguments would take, from the model's configuration alone, and any shortage."""
    from sglang.srt.configs.model_config import ModelConfig

    from led_sglang.integration.support import in_effect

    view = in_effect(server_args)
    model_config: ModelConfig = ModelConfig.from_server_args(server_args)
    graphs = GraphSizes.of(view)
    num_slots = view.max_running_requests or MAX_SLOTS
    sizes = Sizes(
        rows_of(num_slots + 1, graphs, tokens_per_request_of(server_args)),
        int(model_config.hidden_size),
        int(model_config.vocab_size),
        model_config.dtype.itemsize,
        graphs,
        eager_tokens_of(view, graphs),
    )
    plan = memory_plan(config, sizes)
    if view.device != "cuda" or not torch.cuda.is_available() or not view.mem_fraction_static:
        return plan, None
    whole = torch.cuda.get_device_properties(0).total_memory
    return plan, shortage(plan, int(whole * (1 - view.mem_fraction_static)))
