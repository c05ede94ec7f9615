"""As much of a step as the handlers of the other methods read."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from led_sglang.config.methods import METHODS, captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler.batch import DeviceRows, LedBatch, MethodGroup
from led_sglang.ops.types import Head
from tests.unit.integration.fakes import CLOSE_ID, forward_mode, sampling_info

CONFIG = ServerConfig(methods=METHODS, num_layers=12, close_ids=(CLOSE_ID,))
V, H, LAYERS = 11, 4, captured_layers(CONFIG)


@dataclass
class Notes:
    """Stands for SoftInputs."""

    close_id: int = CLOSE_ID
    num_low_entropy: Tensor = field(default_factory=lambda: torch.zeros(9, dtype=torch.int64))
    written: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def write(self, slots: Tensor, ids: Tensor, weights: Tensor, is_soft: Tensor, num_low_entropy: Tensor) -> None:
        columns = (x.tolist() for x in (slots, ids, weights, is_soft, num_low_entropy))
        self.written |= {slot: rest for slot, *rest in zip(*columns, strict=True)}
        self.num_low_entropy[slots] = num_low_entropy


def head() -> Head:
    generator = torch.Generator().manual_seed(1)
    norm = nn.LayerNorm(H, elementwise_affine=False)
    return Head(weight=torch.randn(V, H, generator=generator), num_rows=V, first_id=0, final_norm=norm)


def context_of(led: LedBatch, is_decode: bool = True, thinking: list[bool] | None = None, **info: Any) -> Any:
    rows: DeviceRows = led.device_rows(sampling_info(led, **info))
    num_ours = len(led.our_rows)
    latents = torch.randn(len(LAYERS), 8, H, generator=torch.Generator().manual_seed(2))
    runtime = SimpleNamespace(
        config=CONFIG,
        head=head(),
        soft=Notes(),
        capture=SimpleNamespace(layers=LAYERS, states=latents),
        forward_batch=SimpleNamespace(forward_mode=forward_mode(is_decode)),
        unedited_logits={},
    )
    return SimpleNamespace(
        runtime=runtime,
        rows=rows,
        row_inputs=SimpleNamespace(
            slots=torch.arange(num_ours) + 2,
            thinking=torch.tensor(thinking or [True] * num_ours),
            positions=torch.arange(num_ours) + 30,
        ),
    )


def logits_for(num_rows: int) -> Tensor:
    """Row by row the same, however many; the close marker never wins."""
    logits = torch.randn(8, V, generator=torch.Generator().manual_seed(3)) * 2
    logits[:, CLOSE_ID] = -5.0
    return logits[:num_rows]


def group_of(context: Any, method: str) -> MethodGroup:
    group: MethodGroup = context.rows.groups[method]
    return group
