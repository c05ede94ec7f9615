"""A token's record as a row of integers, as it lies in the buffers that travel from a prefill server to a decode one.

Both servers must lay out a row alike, whatever their own limits are: its width is a constant.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from led_sglang.wire import HANDOFF_HEAD, HANDOFF_SCALARS, HANDOFF_SPACE, HANDOFF_WIDTH, VALUE_COLUMNS

# The head: both halves of the request's room, whether there is an entry and of which kind, the flags, and the numbers
# of candidates and of depths. Behind it lie the values, as float32, and the candidates.
ABSENT, BARE, NULL, TRACED = 0, 1, 2, 3  # kinds: none, the flags alone, a trace without values, one with all of them


def write(buffer: Tensor, room: int, entry: int | tuple[Any, ...] | None) -> None:
    """Overwrites the buffer, (HANDOFF_WIDTH,) int32, with an entry of `StepRecord.entries`; None: absent.

    room: in [0, 2^64). Values are rounded to float32, which the kernels compute in. Raises ValueError for a trace with
    more than HANDOFF_SPACE of them.
    """
    row = np.zeros(HANDOFF_WIDTH, np.int32)
    row[:2] = np.array([room], np.uint64).view(np.int32)
    if isinstance(entry, int):
        row[2:4] = BARE, entry
    elif entry is not None:
        flags, *scalars, candidates, exploit, explore, depths = entry
        row[2:4] = NULL, flags
        if candidates is not None:
            _write_trace(row, scalars, candidates, [*exploit, *explore, *(depths or ())], depths)
    buffer.copy_(torch.from_numpy(row))


def _write_trace(
    row: NDArray[np.int32], scalars: list[float], candidates: list[int], values: list[float], depths: list[float] | None
) -> None:
    num_candidates = len(candidates)
    if num_candidates + len(values) > HANDOFF_SPACE:
        raise ValueError(f"a trace of {num_candidates + len(values)} values does not fit a row of {HANDOFF_SPACE}")
    row[2], row[4], row[5] = TRACED, num_candidates, -1 if depths is None else len(depths)
    floats = row[HANDOFF_HEAD:].view(np.float32)
    floats[:HANDOFF_SCALARS] = scalars
    row[HANDOFF_HEAD + HANDOFF_SCALARS :][:num_candidates] = candidates
    floats[HANDOFF_SCALARS + num_candidates :][: len(values)] = values


def read(buffer: Tensor, room: int) -> int | tuple[Any, ...] | None:
    """The entry of (HANDOFF_WIDTH,) int32; None: there is none, or it is of another room."""
    row = buffer.cpu().numpy()
    kind, flags, num_candidates, num_depths = row[2:6].tolist()
    if kind == ABSENT or row[:2].view(np.uint64)[0] != room:
        return None
    if kind == BARE:
        return int(flags)
    if kind == NULL:
        return (flags, *[None] * len(VALUE_COLUMNS))
    floats = row[HANDOFF_HEAD:].view(np.float32)
    ends = np.cumsum([HANDOFF_SCALARS, num_candidates, num_candidates, num_candidates, max(num_depths, 0)])
    candidates = row[HANDOFF_HEAD:][ends[0] : ends[1]].tolist()
    exploit, explore, depths = (floats[begin:end].tolist() for begin, end in pairwise(ends[1:]))
    return flags, *floats[:HANDOFF_SCALARS].tolist(), candidates, exploit, explore, None if num_depths < 0 else depths
