"""Tiles of the head kernel against each other and against cuBLAS alone: which one serves how many rows."""

import argparse
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.cases import Case, make_case, make_head
from benchmarks.measure import measure_runs
from led_sglang.ops.kernels import lm_head
from led_sglang.ops.kernels.lm_head import LARGE_TILE, SMALL_TILE, Tile

TILES = (
    SMALL_TILE,
    LARGE_TILE,
    Tile(rows=64, vocab=128, row_bytes=128, warps=4, stages=6, resident=1),
    Tile(rows=64, vocab=128, row_bytes=256, warps=4, stages=3, resident=1),
    Tile(rows=64, vocab=256, row_bytes=128, warps=8, stages=4, resident=1),
    Tile(rows=128, vocab=128, row_bytes=128, warps=8, stages=4, resident=1),
    Tile(rows=256, vocab=128, row_bytes=128, warps=8, stages=4, resident=1),
)
BATCHES = (1, 8, 16, 32, 64)  # final rows; with the latents of seven layers, 8 to 512 rows through the head
Lines = Iterator[dict[str, Any]]

head_of = lru_cache(maxsize=1)(make_head)


def units(args: argparse.Namespace) -> dict[str, Callable[[], Lines]]:
    """By number of rows, each tile by itself: one that does not fit, or breaks the process, leaves the others."""
    batches = args.rows if args.dry_run else BATCHES
    found: dict[str, Callable[[], Lines]] = {}
    for num_rows in batches:
        found[f"rows_{num_rows}/product"] = partial(measure, num_rows, None, args)
        found |= {f"rows_{num_rows}/{_name(tile)}": partial(measure, num_rows, tile, args) for tile in TILES}
    return found


@lru_cache(maxsize=1)
def case_of(num_rows: int, is_dry_run: bool, device: torch.device) -> Case:
    vocab, hidden, depth = (101, 32, 3) if is_dry_run else (151936, 2560, 8)
    return make_case(head_of(vocab, hidden, torch.bfloat16, device), num_rows, depth, num_rows)


def measure(num_rows: int, tile: Tile | None, args: argparse.Namespace) -> Lines:
    """The one pass of all rows by one tile, or the head's product alone."""
    case = case_of(num_rows, args.dry_run, args.device)
    run = case.product if tile is None else one_pass(case, tile)
    times = measure_runs({"run": run}, args.device, args.repeats)["run"]
    through = num_rows * (1 if tile is None else 1 + len(case.batch_latents))
    name = "product" if tile is None else _name(tile)
    yield {"kind": "time", "rows": num_rows, "rows_through_head": through, "run": name, **times.line()}


def _name(tile: Tile) -> str:
    """rows x vocabulary x bytes of hidden dimensions x warps x stages."""
    return "x".join(map(str, tile))


def one_pass(case: Case, tile: Tile) -> Callable[[], object]:
    """All rows and latents through the head, by this tile."""
    num_rows, device = len(case.hidden), case.hidden.device
    tau, mask = torch.ones(num_rows, device=device), torch.ones(num_rows, dtype=torch.bool, device=device)
    lse = torch.empty(case.batch_latents.shape[:2], device=device)

    def run() -> None:
        with patch.object(lm_head, "tile_of", lambda *_, **__: tile):
            lm_head.head_sums(case.hidden, lm_head.LatentRows(case.batch_latents, mask, tau), case.head, lse)

    return run
