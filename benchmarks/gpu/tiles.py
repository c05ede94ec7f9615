"""Tiles of the head kernel against each other and against cuBLAS alone: which one serves how many rows."""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.cases import Case, make
from benchmarks.measure import interleaved_median_ms
from led_sglang.ops.kernels import lm_head
from led_sglang.ops.kernels.lm_head import LARGE_TILE, SMALL_TILE, Tile

TILES = (
    SMALL_TILE,
    LARGE_TILE,
    Tile(rows=64, vocab=128, row_bytes=128, warps=4, stages=6),
    Tile(rows=64, vocab=128, row_bytes=256, warps=4, stages=3),
    Tile(rows=64, vocab=256, row_bytes=128, warps=8, stages=4),
    Tile(rows=128, vocab=128, row_bytes=128, warps=8, stages=4),
    Tile(rows=256, vocab=128, row_bytes=128, warps=8, stages=4),
)
BATCHES = (1, 8, 16, 32, 64)  # final rows; with the latents of seven layers, 8 to 512 rows through the head


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each number of rows: the head's product alone, and the one pass by every tile, in ms."""
    vocab, hidden, depth = (257, 64, 3) if args.dry_run else (151936, 2560, 8)
    for num_rows in args.rows if args.dry_run else BATCHES:
        case = make(num_rows, vocab, hidden, depth, 1.0, torch.bfloat16, args.device)
        runs = {"head_ms": lambda case=case: case.hidden @ case.head.weight.T}
        runs |= {"x".join(map(str, tile)): partial(one_pass, case, tile) for tile in TILES}
        with torch.inference_mode():
            times = interleaved_median_ms(runs, args.device, args.repeats)
        yield {"rows": num_rows, "rows_through_head": num_rows * depth} | {k: round(v, 4) for k, v in times.items()}


def one_pass(case: Case, tile: Tile) -> None:
    with patch.object(lm_head, "tile_of", lambda num_rows, dtype: tile):
        num_rows, device = len(case.hidden), case.hidden.device
        tau, wanted = torch.ones(num_rows, device=device), torch.ones(num_rows, dtype=torch.bool, device=device)
        normalizers = torch.empty(case.latents.shape[:2], device=device)
        lm_head.head_pass(case.hidden, case.latents, case.head, tau, wanted, normalizers)
