"""Every variant of the Triton kernels that a request can reach, run once before there is any request.

A kernel is compiled, or read from the disk, and loaded at its first launch. That takes up to a second, in which no
request of the server gets a token, and is an error while a CUDA graph is captured.
"""

from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops.backends import one_pass, triton_step
from led_sglang.ops.rows.automaton import ThinkingAutomaton, ThinkingTables
from led_sglang.ops.rows.filtered_draw import Filters, sample_filtered
from led_sglang.ops.rows.inputs import RowInputs, RowMeta
from led_sglang.ops.rows.stats import Counters
from led_sglang.ops.types import Head, LedRows, LedStep, Noise

TOKEN_DTYPES = (torch.int32, torch.int64)  # SGLang's: drawn, and greedy


def warm_up(
    head: Head,
    latents: Tensor,
    vocab_size: int,
    max_rows: int,
    max_top_k: int,
    tables: ThinkingTables | None = None,
) -> None:
    """Run all variants that batches of up to max_rows rows and top_k up to max_top_k can reach on the head's device.

    latents: (D, any, H), of which shape and dtype are taken and nothing else: those that every step will be given, so
    D + 1 is the largest depth. vocab_size: of the whole vocabulary, which the final logits have. Makes no collective;
    raises what a kernel raises.
    """
    from led_sglang.ops.kernels.columns import BATCH_SIZES, WIDTHS, sizes_up_to
    from led_sglang.ops.kernels.lm_head import SMALL_TILE

    own = replace(head, all_gather=None)  # the other ranks are not asked: a kernel sees its own shard alone
    columns = vocab_size if head.all_gather is not None else min(vocab_size, head.num_rows)
    widths = sizes_up_to(max_top_k, WIDTHS)
    steps = [_step(own, latents, columns, min(width, max_top_k)) for width in widths]
    if len(latents):
        for size in sizes_up_to(max_rows, BATCH_SIZES):
            _sums(own, latents, size // 4 + 1 if size > BATCH_SIZES[0] else SMALL_TILE.rows)
    _surroundings(steps[0], latents, tables)
    _draw(vocab_size, latents.device)


def _step(head: Head, latents: Tensor, num_columns: int, top_k: int) -> LedStep:
    """A row that explores as deep as it can."""
    device = latents.device
    rows, noise = _row(len(latents) + 1, top_k, device), Noise(*torch.zeros(2, 1, 16, device=device).double()[:, :, 0])
    some = latents.new_zeros(len(latents), 1, latents.shape[2])
    return triton_step.led_step(torch.zeros(1, num_columns, device=device), some, head, rows, noise)


def _sums(head: Head, latents: Tensor, num_rows: int) -> None:
    """The head's own pass, of a batch that takes the large tile; nobody rides, so that hardly anything is computed."""
    if head.project is not None:
        return
    from led_sglang.ops.kernels.lm_head import LatentRows, head_sums

    hidden = latents.new_zeros(1, num_rows, latents.shape[2])
    explore_mask = torch.zeros(num_rows, dtype=torch.bool, device=hidden.device)
    rows = LatentRows(hidden, explore_mask, torch.ones(num_rows, device=hidden.device))
    head_sums(hidden[0, :1], rows, head, torch.zeros(1, num_rows, device=hidden.device))


def _surroundings(step: LedStep, latents: Tensor, tables: ThinkingTables | None) -> None:
    from led_sglang.ops.kernels import row_inputs, row_stats
    from led_sglang.ops.kernels.one_pass_mask import fill_one_pass_mask

    device = latents.device
    numbers, flags = torch.zeros(16, dtype=torch.int64, device=device), torch.zeros(16, dtype=torch.bool, device=device)
    row, flag = numbers[:1], flags[:1]
    meta = RowMeta(None, row, row, row, row, flag, None, False)
    states = torch.zeros(16, dtype=torch.int64, device=device)
    now: RowInputs = row_inputs.make_row_inputs(meta, row, row, None, states)
    rows = _row(len(latents) + 1, 1, device)
    coin_threshold = one_pass.coin_threshold_of("triton", device)
    fill_one_pass_mask(
        rows,
        now.coin_uniform,
        coin_threshold,
        None,
        torch.zeros(16, dtype=torch.bool, device=device),
        torch.ones(16, device=device),
    )
    row_stats.pack_flags(now, step, row, Counters.zeros(len(latents) + 1, 1, device))
    tables = ThinkingAutomaton([0], [1], 2).tables(device) if tables is None else tables
    for dtype in TOKEN_DTYPES:
        token_ids = torch.zeros(16, dtype=dtype, device=device)[:1]
        row_inputs.write_tokens(meta, token_ids, now, step)
        row_inputs.move_states(meta, tables, states, now, token_ids)


def _draw(vocab_size: int, device: torch.device) -> None:
    """A token outside the phase of a request that named its seed."""
    probs, row = torch.zeros(1, vocab_size, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    column = torch.ones(1, device=device)
    filters = Filters(column.int(), column, column)  # SGLang's dtypes
    sample_filtered(probs, row, column > 1, column.double(), filters, "triton")


def _row(depth: int, top_k: int, device: torch.device) -> LedRows:
    def column(value: float | bool) -> Tensor:
        return torch.full((1,), value, device=device)

    return LedRows(
        active=column(True),
        depth=column(depth),
        top_k=column(top_k),
        temperature=column(1.0),
        greedy=column(False),
        exploit=column(False),
        latent_norm=column(False),
        normalize_layers=column(False),
        latent_offset=column(0),
        min_p=column(0.0),
        trace=column(False),
        max_depth=depth,
        max_top_k=top_k,
        any_trace=False,
        any_norm=False,
        all_norm=False,
        any_greedy=False,
        any_offset=False,
    )
