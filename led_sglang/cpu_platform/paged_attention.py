"""The arithmetic of a decode step's attention, compiled by numba: `attend` reads a paged cache row by row.

A row's bits depend on its own query, keys and values alone: not on the other rows, nor on the process that compiled it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from led_sglang.jit import jit

__all__ = ["attend"]


@jit
def _widened(source: Any, target: Any) -> None:
    """float32 as it is, bfloat16 (as uint16) as the float32 whose upper half it is. source, target: (size,)."""
    if source.itemsize == 4:
        for d in range(len(source)):
            target[d] = source[d]
    else:
        bits = target.view(np.uint32)
        for d in range(len(source)):
            bits[d] = np.uint32(source[d]) << np.uint32(16)


@jit
def _gather(cache: Any, slots: Any, gathered: Any) -> None:
    """Copying first and computing then keeps many reads of scattered memory under way: nearly twice as fast."""
    for i in range(len(slots)):
        _widened(cache[slots[i]], gathered[i])


@jit
def _gather_transposed(cache: Any, slots: Any, gathered: Any) -> None:
    """gathered: (heads * size, length), written. Keys side by side are scored together, with no sum reordered."""
    source = np.empty(cache.shape[1], np.float32)
    for i in range(len(slots)):
        _widened(cache[slots[i]], source)
        for d in range(len(source)):
            gathered[d, i] = source[d]


@jit
def _score(query: Any, keys: Any, scale: Any, scores: Any) -> None:
    """query: (query heads, size); keys: (heads, size, length); scores: (query heads, length or more), written."""
    num_heads, size, length = keys.shape
    group = len(query) // num_heads
    scores[:, :length] = 0
    for member in range(len(query)):
        products = scores[member]
        for d in range(size):
            own, key = query[member, d] * scale, keys[member // group, d]
            for i in range(length):
                products[i] += own * key[i]


@jit
def _softmax(scores: Any) -> None:
    highest, total = np.float32(-np.inf), np.float32(0)
    for i in range(len(scores)):
        highest = max(highest, scores[i])
    for i in range(len(scores)):
        scores[i] = np.exp(scores[i] - highest)
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


@jit
def _mix(values: Any, weights: Any, output: Any) -> None:
    """values: (length, heads, size); weights: (query heads, length or more); output: (query heads, size), written."""
    num_heads, group = values.shape[1], len(output) // values.shape[1]
    output[:, :] = 0
    for head in range(num_heads):
        for i in range(len(values)):
            value = values[i, head]
            for member in range(head * group, (head + 1) * group):
                own, weight = output[member], weights[member, i]
                for d in range(len(own)):
                    own[d] += weight * value[d]


@jit
def attend(
    query: Any, keys: Any, values: Any, table: Any, requests: Any, lengths: Any, scale: Any, output: Any, rows: Any
) -> None:
    """softmax(scale q K^T) V of some rows; every array is C-contiguous.

    query, output: (rows, query heads, size) float32; keys, values: (slots, heads, size) float32, or bfloat16 as uint16;
    table: (requests, context) int32 slots; requests, lengths: (rows,) int64; rows: (first, last + 1).
    """
    longest = lengths[rows[0] : rows[1]].max()
    scores = np.empty((query.shape[1], longest), np.float32)
    flat_keys, flat_values = keys.reshape(len(keys), -1), values.reshape(len(values), -1)
    row_keys = np.empty(longest * keys.shape[1] * keys.shape[2], np.float32)
    row_values = np.empty((longest, values.shape[1], values.shape[2]), np.float32)
    for row in range(rows[0], rows[1]):
        length = lengths[row]
        slots = table[requests[row], :length]
        transposed = row_keys[: length * flat_keys.shape[1]]
        _gather_transposed(flat_keys, slots, transposed.reshape(-1, length))
        _gather(flat_values, slots, row_values.reshape(longest, -1))
        _score(query[row], transposed.reshape(keys.shape[1], keys.shape[2], length), scale, scores)
        for head in range(len(scores)):
            _softmax(scores[head, :length])
        _mix(row_values[:length], scores, output[row])
