"""`led_sglang.ops.rows.draft_tree` in two kernels: torch launches some for every node of a tree.

No GPU has timed them; they save launches, and nothing depends on them but `backends.triton`.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import width_of
from led_sglang.ops.kernels.final_layer import FinalRows
from led_sglang.ops.kernels.mix_and_sample import choose
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import LedRows, StepInputs


@triton.jit(do_not_specialize=["num_nodes", "num_vocab", "num_symbols"])
def grow_kernel(  # type: ignore[no-untyped-def]
    token_ids,  # (B, N) int64, like the next two
    first_child,
    next_sibling,
    root_states,  # (B,) int64
    symbol_of,  # (num_vocab,) int64
    next_state,  # int64
    parents,  # (B, N) int64, -1 on entry, written
    states,  # (B, N) int64, written
    num_nodes,
    num_vocab,
    num_symbols,  # 0: there is no automaton
):
    """Parent and thinking state of each node; see `Backend.draft_tree`. A program: one request, node after node."""
    base = tl.program_id(0).to(tl.int64) * num_nodes
    root = tl.load(root_states + tl.program_id(0))
    for node in range(num_nodes):
        parent = tl.load(parents + base + node)
        has_parent = (node > 0) & (parent >= 0)
        before = tl.load(states + base + parent, mask=has_parent, other=0)
        token = tl.load(token_ids + base + node)
        is_known = has_parent & (num_symbols > 0) & (token >= 0) & (token < num_vocab)
        symbol = tl.load(symbol_of + token, mask=is_known, other=0)
        is_moved = has_parent & (num_symbols > 0)
        after = tl.load(next_state + before * num_symbols + symbol, mask=is_moved, other=0)
        tl.store(states + base + node, tl.where(is_moved, after, root))
        child, sibling = tl.load(first_child + base + node), tl.load(next_sibling + base + node)
        tl.store(parents + base + child, node, mask=(child > node) & (child < num_nodes))
        tl.store(parents + base + sibling, parent, mask=(sibling > node) & (sibling < num_nodes))
        tl.debug_barrier()  # the next node reads what this one has written


@triton.jit(do_not_specialize=["num_nodes", "num_candidates"])  # type: ignore[untyped-decorator]
def prune_kernel(  # type: ignore[no-untyped-def]
    node_tokens,  # (B, N) int64, like the next one
    parents,
    logprobs,  # (T, K) float32, of the final layer
    ids,  # (T, K) int64
    explored,  # (T,) uint8, written where a node is out of reach
    active,  # (T,) bool
    greedy,  # (T,) bool
    uniforms,  # (T,) float64
    explore_mask,  # (T,) uint8, the same
    is_reached,  # (T,) uint8, written
    num_nodes,
    num_candidates,
    BLOCK: tl.constexpr,
):
    """Clear the mask of nodes that cannot be accepted; see `rows.draft_tree.reachable`. A program: one request.

    The token of a node that exploits is drawn as `mix_and_sample_kernel` draws it, by the same function.
    """
    base = tl.program_id(0).to(tl.int64) * num_nodes
    columns = tl.arange(0, BLOCK)
    is_column = columns < num_candidates
    tl.store(is_reached + base, 1)
    tl.debug_barrier()
    for node in range(1, num_nodes):
        parent = tl.load(parents + base + node)
        has_parent = parent >= 0
        row = base + tl.where(has_parent, parent, 0)
        logs = tl.load(logprobs + row * num_candidates + columns, mask=is_column, other=float("-inf"))
        final = tl.exp(logs)
        exploit = final / tl.sum(final, 0)
        choice = choose(exploit, is_column, tl.load(uniforms + row), tl.load(greedy + row) != 0)
        token = tl.load(ids + row * num_candidates + tl.minimum(choice, num_candidates - 1))
        is_broken = (tl.sum(tl.where(columns == 0, final, 0.0), 0) > 0.0) == 0
        is_open = (tl.load(explore_mask + row) != 0) | (tl.load(active + row) == 0) | is_broken
        leads_here = is_open | (token == tl.load(node_tokens + base + node))
        reached = has_parent & leads_here & (tl.load(is_reached + row) != 0)
        tl.store(is_reached + base + node, reached.to(tl.uint8))
        tl.store(explore_mask + base + node, 0, mask=reached == 0)
        tl.store(explored + base + node, 1, mask=reached == 0)  # explored without its latents: not ok
        tl.debug_barrier()


def draft_tree(drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
    """See `led_sglang.ops.backend.Backend.draft_tree`."""
    token_ids = drafts.token_ids.contiguous()
    num_requests, num_nodes = token_ids.shape
    parents, states = torch.full_like(token_ids, -1), torch.empty_like(token_ids)
    symbol_of, next_state, num_symbols = root_states, root_states, 0
    if tables is not None:
        symbol_of, next_state, num_symbols = tables.symbol_of, tables.next_state, tables.num_symbols
    if num_requests:
        grow_kernel[(num_requests,)](
            token_ids, drafts.first_child.contiguous(), drafts.next_sibling.contiguous(), root_states,
            symbol_of, next_state, parents, states, num_nodes, len(symbol_of), num_symbols,
            num_warps=1,
        )  # fmt: skip
    return DraftTree(drafts, parents, states)


def pruned(
    final: FinalRows, rows: LedRows, inputs: StepInputs, tree: DraftTree, has_fixed_width: bool = False
) -> FinalRows:
    """`final` without the need for latents where a node is out of reach, which comes out of the step as not ok."""
    num_requests, num_nodes = tree.drafts.token_ids.shape
    num_candidates = final.logprobs.shape[1]
    mask, explored = (flags.to(torch.uint8, copy=True) for flags in (final.explore_mask, final.explored))
    if num_requests:
        prune_kernel[(num_requests,)](
            tree.drafts.token_ids.contiguous(), tree.parents.contiguous(), final.logprobs.contiguous(),
            final.candidate_ids.contiguous(), explored, inputs.active, rows.greedy,
            inputs.token_uniform.contiguous(), mask, torch.empty_like(mask), num_nodes, num_candidates,
            BLOCK=width_of(num_candidates, has_fixed_width),
        )  # fmt: skip
    return replace(final, explore_mask=mask.view(torch.bool), explored=explored.view(torch.bool))
