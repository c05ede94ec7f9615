"""`ops.rows.filtered_draw` on a CPU, compiled: two passes over a row's vocabulary, five where filters cut it."""

from typing import Any

import numpy as np

from led_sglang.jit import jit
from led_sglang.ops.constants import NO_LIMIT, ONE

BINS = 1 << 10  # a float32 in [0, 1] is an ordered integer of 30 bits: three digits


@jit
def draw_rows(
    probs: Any, rows: Any, skip: Any, uniform: Any,
    top_k: Any, top_p: Any, min_p: Any, tokens: Any, floor: Any, ties: Any,
) -> None:  # fmt: skip
    """`sample_filtered` of (B, V) float32 for `rows`; tokens, floor and ties, (S,) each, are written."""
    num_columns = probs.shape[1]
    clean = np.empty(num_columns, np.float32)
    bits, edge = clean.view(np.int32), np.empty(1, np.float32)
    counts, masses = np.empty(BINS, np.int64), np.empty(BINS, np.int64)
    for s in range(len(rows)):
        tokens[s], floor[s], ties[s] = 0, 0, num_columns
        if skip[s]:
            continue
        r, peak = rows[s], np.float32(0)
        for v in range(num_columns):
            p = probs[r, v]
            if not (p > 0 and p < 2):  # NaN and infinity too
                p = np.float32(0)
            clean[v] = min(p, np.float32(1))
            peak = max(peak, clean[v])
        limit = np.int64(np.float64(top_p[r]) * ONE) if top_p[r] < 1 else np.int64(NO_LIMIT)
        if top_k[r] < num_columns or limit < ONE:
            floor[s], ties[s] = _find_floor(clean, bits, np.int64(top_k[r]), limit, counts, masses)
        edge[0] = peak * np.float32(min_p[r])
        if edge.view(np.int32)[0] > floor[s]:
            floor[s], ties[s] = edge.view(np.int32)[0], num_columns
        tokens[s] = _draw(clean, bits, floor[s], ties[s], uniform[s])


@jit
def _find_floor(clean: Any, bits: Any, top_k: Any, limit: Any, counts: Any, masses: Any) -> Any:
    """The smallest pattern with fewer than `top_k` tokens above it, of no more than `limit`, and how many it keeps.

    Found digit by digit: each pass counts the tokens of one digit whose higher digits are known.
    """
    prefix, count, mass = 0, np.int64(0), np.int64(0)  # of the tokens above all that have the prefix
    for shift in (20, 10, 0):
        counts[:] = 0
        masses[:] = 0
        for v in range(len(bits)):
            if bits[v] >> (shift + 10) == prefix:
                digit = (bits[v] >> shift) & (BINS - 1)
                counts[digit] += 1
                masses[digit] += np.int64(clean[v] * np.float32(ONE))
        digit = BINS - 1
        while digit > 0 and count + counts[digit] < top_k and mass + masses[digit] <= limit:
            count += counts[digit]
            mass += masses[digit]
            digit -= 1
        prefix = (prefix << 10) | digit
    kept = top_k - count
    if counts[digit] and masses[digit]:
        kept = min(kept, (limit - mass) // (masses[digit] // counts[digit]) + 1)
    return prefix, kept


@jit
def _draw(clean: Any, bits: Any, floor: Any, ties: Any, uniform: float) -> Any:
    """The first kept token whose cumulated probability exceeds the uniform. What is not kept is 0 in `clean` then."""
    total, seen = np.int64(0), 0
    for v in range(len(bits)):
        is_kept = bits[v] > floor
        if bits[v] == floor and seen < ties:
            is_kept, seen = True, seen + 1
        if is_kept:
            total += np.int64(clean[v] * np.float32(ONE))
        else:
            clean[v] = 0
    target, cumulated = min(np.int64(uniform * np.float64(total)), total - 1), np.int64(0)
    for v in range(len(bits)):
        cumulated += np.int64(clean[v] * np.float32(ONE))
        if cumulated > target:
            return v
    return 0
