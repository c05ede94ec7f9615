"""Heads that the engine multiplies, and batches of which some rows explore."""

from typing import Any

import torch
from torch import Tensor

from tests.unit.ops.cases.op_cases import Case, make_case


class Product:
    """The engine's own, and how many rows each call of it was given."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.num_rows = weight, []

    def __call__(self, rows: Tensor) -> Tensor:
        self.num_rows.append(len(rows))
        return rows @ self.weight.T


def projected(case: Case) -> tuple[Case, Product]:
    """The weight itself is out of reach."""
    product = Product(case.head.weight)
    return case.with_head(project=product, weight=case.head.weight[:, :0]), product


def with_explorers(num_rows: int, num_explorers: int, **changes: Any) -> Case:
    case = make_case(num_rows, explore=False, **changes)
    case.inputs.coin_uniform[torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))[:num_explorers]] = 0.0
    return case
