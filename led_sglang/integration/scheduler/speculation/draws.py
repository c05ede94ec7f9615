"""Tokens outside the phase of requests that named a seed: at every draft node, as the sampler draws them."""

import torch
from torch import Tensor

from led_sglang.integration.memory import STEP_BYTES
from led_sglang.integration.scheduler.speculation.nodes import VerifyInputs
from led_sglang.ops.types import Filters


def draw_seeded(inputs: VerifyInputs, nodes: Tensor, logits: Tensor, token_ids: Tensor) -> Tensor:
    """`token_ids`, (T,) int64, with those of inactive `nodes`, (S,), from the final logits (T, V).

    Without them a seed would not name one text. Some nodes at a time, since each takes a row of probabilities.
    """
    if inputs.runtime.allows_dynamic_shapes:
        nodes = nodes[~inputs.active[nodes]]
    token_ids = token_ids.clone()
    chunk = max(1, STEP_BYTES // (4 * logits.shape[1]))
    for some in torch.split(nodes, chunk) if len(nodes) else ():
        skip = inputs.active[some]
        token_ids[some] = torch.where(skip, token_ids[some], _draw(inputs, some, skip, logits).long())
    return token_ids


def _draw(inputs: VerifyInputs, nodes: Tensor, skip: Tensor, logits: Tensor) -> Tensor:
    """(n,) with LED's noise."""
    info, requests, backend = inputs.info, inputs.nodes.request_idx[nodes], inputs.runtime.backend
    probs = backend.softmax_rows(logits, nodes, skip, info.temperatures.view(-1)[requests].float())
    is_any = info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling
    filters = Filters(info.top_ks[requests], info.top_ps[requests], info.min_ps[requests], is_any)
    number = torch.arange(len(nodes), device=nodes.device)
    uniform = inputs.row_inputs.token_uniform[nodes]
    token_ids, _ = backend.sample_filtered(probs, number, skip, uniform, filters)
    return token_ids
