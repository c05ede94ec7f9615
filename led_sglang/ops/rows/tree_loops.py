"""`led_sglang.ops.rows.draft_tree` compiled, for a CPU: one call where torch needs some for every node."""

from typing import Any

from led_sglang.jit import jit


@jit
def grow(
    token_ids: Any, first_child: Any, next_sibling: Any, root_states: Any, symbol_of: Any, next_state: Any,
    num_symbols: int, parents: Any, states: Any,
) -> None:  # fmt: skip
    """(B, N) each but root_states, (B,); parents and states are written. num_symbols 0: there is no automaton."""
    num_requests, num_nodes = token_ids.shape
    parents[:] = -1
    for b in range(num_requests):
        for node in range(num_nodes):
            parent = parents[b, node]
            states[b, node] = root_states[b]
            if node > 0 and parent >= 0 and num_symbols > 0:
                token = token_ids[b, node]
                symbol = symbol_of[token] if 0 <= token < len(symbol_of) else 0
                states[b, node] = next_state[states[b, parent] * num_symbols + symbol]
            child, sibling = first_child[b, node], next_sibling[b, node]
            if node < child < num_nodes:
                parents[b, child] = node
            if node < sibling < num_nodes:
                parents[b, sibling] = parent


@jit
def prune(node_tokens: Any, parents: Any, token_ids: Any, active: Any, needs_latents: Any, ok: Any) -> None:
    """node_tokens, parents: (B, N); the others: (B * N,). Rows out of reach need no latents and are not ok."""
    num_requests, num_nodes = node_tokens.shape
    for b in range(num_requests):
        start = b * num_nodes
        is_reached = [True] * num_nodes
        for node in range(1, num_nodes):
            parent = parents[b, node]
            row = start + parent
            is_open = parent >= 0 and (needs_latents[row] or not active[row] or not ok[row])
            leads_here = parent >= 0 and (is_open or token_ids[row] == node_tokens[b, node])
            is_reached[node] = leads_here and is_reached[parent]
            if not is_reached[node]:
                needs_latents[start + node] = ok[start + node] = False
