"""What a method that rewrites logits is given of a step: the rows of the requests that chose it.

Shape letters: `n` rows, `E` captured layers, `V` vocabulary, `H` hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.types import Head


@dataclass(frozen=True)
class MethodRows:
    """A method's function returns (n, V) logits, of any float type, from which the engine samples."""

    final_logits: Tensor  # (n, V), before temperature; with the engine's penalties, bias and grammar mask
    latents: Tensor  # (E, n, H) un-normed residual streams in the model's dtype, in the order of `Method.layers`
    is_candidate: Tensor  # (n, E) bool: the layers that the row's own parameters name
    head: Head
    column: Callable[[str, torch.dtype], Tensor]  # one parameter of every row by its key: (n,); of a choice its place
    uniform: Callable[[], Tensor]  # (n,) float64 in [0, 1): the row's own noise, apart from the token's
    largest: Callable[[str], int]  # the largest legal value of an integer parameter: a width for any row, host-known
    unedited_logits: Tensor | None = None  # (n, V) before penalties and bias; None: no row has any
    edits: LogitEdits | None = None  # these penalties and bias
