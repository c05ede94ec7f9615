"""Every variant of compiled code that a request can reach, run once before there is any request.

A Triton kernel is compiled, or read from the disk, and loaded at its first launch. That takes up to a second, in which
no request of the server gets a token, and is an error while a CUDA graph is captured. numba compiles at a first call.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops.backend import Backend
from led_sglang.ops.rows.automaton import ThinkingAutomaton, ThinkingTables
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import Counters, Filters, Head, LedRows, LedStep, RowMeta, StepInputs

TOKEN_DTYPES = (torch.int32, torch.int64)  # SGLang's: drawn, and greedy


def run_with_head(
    backend: Backend,
    head: Head,
    latents: Tensor,
    vocab_size: int,
    widths: Sequence[int],
    num_rows: int,
    tables: ThinkingTables | None,
) -> None:
    """See `Backend.warm_up`; steps of so many candidates, and a pass of the head over so many latent rows."""
    own = replace(head, all_gather=None)  # makes no collective: a kernel sees its own shard alone
    columns = vocab_size if head.all_gather is not None else min(vocab_size, head.num_rows)
    steps = [_step(backend, own, latents, columns, width) for width in widths]
    if len(latents) and head.project is None:
        _pass(backend, own, latents, num_rows)
        if head.lse_copy is not None:  # what the steps above have launched is the copy's
            _pass(backend, own, latents, 1)
    _surroundings(backend, steps[0], len(latents) + 1, latents.device, tables)
    probs = torch.zeros(1, vocab_size, device=latents.device)
    _draw(backend, probs)


def run_without_head(backend: Backend) -> None:
    """With a vocabulary of two tokens: loops are compiled for types, not for sizes. CPU only."""
    head, latents = Head(torch.zeros(2, 1), 2), torch.zeros(1, 1, 1)
    step = _step(backend, head, latents, 2, 2)
    _surroundings(backend, step, 2, latents.device, None)
    for probs in (torch.zeros(1, 2), torch.zeros(2, 3)[:, :2]):  # where the head is padded, the engine's are strided
        _draw(backend, probs)


def _step(backend: Backend, head: Head, latents: Tensor, num_columns: int, top_k: int) -> LedStep:
    """A row that explores as deep as it can, alone in its draft tree: without a tree the same is launched, or less."""
    device = latents.device
    rows = LedRows.uniform(1, len(latents) + 1, top_k, device, exploit=False)
    uniforms = torch.zeros(2, 1, 16, device=device).double()[:, :, 0]
    inputs = StepInputs(torch.ones(16, dtype=torch.bool, device=device)[:1], *uniforms)
    some = latents.new_zeros(len(latents), 1, latents.shape[2])
    logits = torch.zeros(1, num_columns, device=device)
    return backend.step(logits, some, head, rows, inputs, tree=_tree(backend, device, None))


def _tree(backend: Backend, device: torch.device, tables: ThinkingTables | None) -> DraftTree:
    node, none = torch.zeros(2, 1, 1, dtype=torch.int64, device=device)
    return backend.draft_tree(Drafts(node, none - 1, none - 1), node[0], tables)


def _pass(backend: Backend, head: Head, latents: Tensor, num_rows: int) -> None:
    """The head's own pass over a batch; its mask is empty, so that hardly anything is computed."""
    hidden, device = latents.new_zeros(1, num_rows, latents.shape[2]), latents.device
    mask, tau = torch.zeros(num_rows, dtype=torch.bool, device=device), torch.ones(num_rows, device=device)
    backend.head_pass(hidden[0, :1], hidden, head, tau, mask, torch.zeros(1, num_rows, device=device))


def _surroundings(
    backend: Backend, step: LedStep, max_depth: int, device: torch.device, tables: ThinkingTables | None
) -> None:
    numbers, flags = torch.zeros(16, dtype=torch.int64, device=device), torch.zeros(16, dtype=torch.bool, device=device)
    row, flag = numbers[:1], flags[:1]
    meta = RowMeta(None, row, row, row, row, flag, None, False)
    states = torch.zeros(16, dtype=torch.int64, device=device)
    inputs = backend.row_inputs(meta, row, row, None, states)
    if backend.supports_one_pass:
        mask, tau = torch.zeros(16, dtype=torch.bool, device=device), torch.ones(16, device=device)
        backend.one_pass_mask(LedRows.uniform(1, max_depth, 1, device), inputs, None, mask, tau)
    counters = Counters.zeros(max_depth, 1, device)
    for decided in (step, None):
        backend.count(inputs, decided, False, row, counters)
    tables = ThinkingAutomaton([0], [1], 2).tables(device) if tables is None else tables
    _tree(backend, device, tables)
    for dtype in TOKEN_DTYPES:
        token_ids = torch.zeros(16, dtype=dtype, device=device)[:1]
        backend.write_tokens(meta, token_ids, inputs, step)
        backend.advance(meta, tables, states, inputs, token_ids)


def _draw(backend: Backend, probs: Tensor) -> None:
    """A token outside the phase of a request that named its seed."""
    row, column = torch.zeros(1, dtype=torch.int64, device=probs.device), torch.ones(1, device=probs.device)
    backend.softmax_rows(probs, row, column > 1, column)
    filters = Filters(column.int(), column, column)  # SGLang's dtypes
    backend.sample_filtered(probs, row, column > 1, column.double() / 2, filters)
