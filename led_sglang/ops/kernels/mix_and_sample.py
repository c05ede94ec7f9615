"""Everything after the layers' sums of a step in one kernel: Eq. 2, 4 to 6, the branch and the token.

A row is a program. In torch the same is some thirty kernels of a few microseconds each, which a small batch on a fast
GPU would wait for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import aligned, width_of
from led_sglang.ops.kernels.final_layer import FinalRows
from led_sglang.ops.types import LedRows, LedStep, StepInputs

TINY = torch.finfo(torch.float32).tiny  # as in torch_step


VALUES_PER_WARP = 512  # of the rows' probabilities in all layers


@triton.jit
def entropy_of(probs):  # type: ignore[no-untyped-def]
    """Over the last axis. 0 log 0 = 0; NaN stays NaN."""
    terms = tl.where(probs == 0.0, 0.0, -probs * tl.log(tl.where(probs == 0.0, 1.0, probs)))
    return tl.sum(terms, len(probs.shape) - 1)


@triton.jit
def choose(branch, is_column, uniform, is_greedy):  # type: ignore[no-untyped-def]
    """The candidate of a row's token: inverse CDF of the branch in float64, or its arg-max."""
    cumulated = tl.cumsum(branch.to(tl.float64), 0)
    target = tl.max(cumulated, 0) * uniform
    choice = tl.sum(((cumulated <= target) & is_column).to(tl.int32), 0)
    return tl.where(is_greedy, tl.argmax(tl.where(branch == branch, branch, -1.0), 0), choice)


@triton.jit(do_not_specialize=["num_rows", "num_candidates", "num_layers", "is_traced"])  # type: ignore[untyped-decorator]
def mix_and_sample_kernel(  # type: ignore[no-untyped-def]
    logprobs,  # (R, K) float32, of the final layer; -inf: not a candidate
    ids,  # (R, K) int64
    lse,  # (J, R) float32
    logits,  # (J, R, K) float32
    explored,  # (R,) bool
    explore_mask,  # (R,) bool: the explore branch is needed
    depths,  # (R,) int64
    normalized,  # (R,) bool
    greedy,  # (R,) bool
    exploits,  # (R,) bool
    uniforms,  # (R,) float64
    out_ids,  # (R,) int64
    out_ok,  # (R,) uint8
    out_depth,  # (R,) int64
    out_confidence,  # (R,) float32
    out_exploit,  # (R, K) float32
    out_explore,  # (R, K) float32
    out_entropy,  # (R,) float32, where is_traced, like the next two
    out_logprob,  # (R,) float32
    out_entropies,  # (R, J + 1) float32
    num_rows,
    num_candidates,
    num_layers,  # J < LAYERS
    is_traced,
    LAYERS: tl.constexpr,
    TINIEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """agg[j] = normalise(p^L + ... + p^{L-j+1}), explore = agg[argmax_j H(agg[j])], token = inverse CDF of the branch.

    A program: one row. It reads K values of each of J + 1 layers at once and holds LAYERS x BLOCK of them and of their
    running sums, float32; the cumulated branch is float64.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < num_candidates
    offset = row * num_candidates + columns
    layers = tl.arange(0, LAYERS)  # 0: the final one
    is_latent = (layers > 0) & (layers <= num_layers)
    # Every load before any use: a row waits for memory once.
    logs = tl.load(logprobs + offset, mask=is_column, other=float("-inf"))
    row_ids = tl.load(ids + offset, mask=is_column, other=0)
    row_lse = tl.load(lse + (layers - 1) * num_rows + row, mask=is_latent, other=0.0)[:, None]
    layer_at = logits + ((layers - 1) * num_rows * num_candidates)[:, None] + offset[None, :]
    values = tl.load(layer_at, mask=is_latent[:, None] & is_column[None, :], other=0.0)
    depth, uniform = tl.load(depths + row), tl.load(uniforms + row)
    is_needed, is_normalized = tl.load(explore_mask + row) != 0, tl.load(normalized + row) != 0
    is_explored, is_greedy = tl.load(explored + row) != 0, tl.load(greedy + row) != 0
    is_mixed = tl.load(exploits + row) != 0

    is_dropped = logs == float("-inf")
    final = tl.exp(logs)
    confidence = tl.exp(tl.sum(tl.where(columns == 0, logs, 0.0), 0))
    exploit = final / tl.sum(final, 0)
    is_allowed = (layers < depth) & (layers <= num_layers)  # what is beyond the row's depth is used by nothing
    # +inf - +inf is NaN: a row whose log-sum-exp overflowed must not pass as probability 0.
    latent = tl.where(is_dropped[None, :], 0.0, tl.exp(values - row_lse) + (row_lse - row_lse))  # Eq. 2
    probs = tl.where(layers[:, None] == 0, final[None, :], latent)
    probs = tl.where(is_normalized, probs / tl.maximum(tl.sum(probs, 1), TINIEST)[:, None], probs)
    total = tl.cumsum(probs, 0)
    aggregates = total / tl.sum(total, 1)[:, None]  # Eq. 4
    entropies = entropy_of(aggregates)  # Eq. 5
    entropies = tl.where(is_allowed, entropies, -1.0)
    is_broken = tl.max((entropies != entropies).to(tl.int32), 0) != 0
    finite = tl.where(entropies == entropies, entropies, -1.0)
    best_entropy, best_layer = tl.max(finite, 0, return_indices=True)  # Eq. 6; ties to the smaller depth
    best_depth = best_layer + 1
    best = tl.sum(tl.where((layers == best_layer)[:, None], aggregates, 0.0), 0)
    tl.store(out_entropies + row * (num_layers + 1) + layers, entropies, mask=(is_traced != 0) & (layers <= num_layers))
    explore = tl.where(is_needed, best, exploit)
    is_fine = (confidence > 0.0) & ((is_broken == 0) | (is_needed == 0))
    is_fine = is_fine & ((is_explored == 0) | is_needed)  # out of reach, see `draft_tree.pruned`

    branch = tl.where(is_explored, explore, exploit)
    choice = choose(branch, is_column, uniform, is_greedy)
    choice = tl.where(is_fine, choice, 0)

    tl.store(out_ids + row, tl.sum(tl.where(columns == choice, row_ids, 0), 0))
    tl.store(out_ok + row, is_fine.to(tl.uint8))
    tl.store(out_depth + row, tl.where(is_needed, best_depth, 1))
    tl.store(out_confidence + row, confidence)
    tl.store(out_exploit + offset, exploit, mask=is_column)
    tl.store(out_explore + offset, explore, mask=is_column)
    if is_traced != 0:
        tl.store(out_entropy + row, tl.where(is_needed, best_entropy, entropy_of(exploit)))
        share = tl.where(is_mixed, confidence, 0.0)
        led = explore + share * (exploit - explore)
        tl.store(out_logprob + row, tl.log(tl.sum(tl.where(columns == choice, led, 0.0), 0)))


def mix_and_sample(
    final: FinalRows,
    lse: Tensor,
    logits: Tensor,
    rows: LedRows,
    inputs: StepInputs,
    max_layers: int = 0,
    has_fixed_width: bool = False,
) -> LedStep:
    """(J, R), (J, R, K) float32: what `torch_step.mixed_step` makes of them, in one launch.

    max_layers: of any batch, for which the kernel is compiled; J where it is more. has_fixed_width: see `width_of`.
    """
    logprobs = final.logprobs
    (num_rows, num_candidates), num_layers = logprobs.shape, len(logits)
    token_ids, depth = torch.empty_like(rows.depth), torch.empty_like(rows.depth)
    ok = torch.empty(num_rows, dtype=torch.uint8, device=logprobs.device)
    confidence, entropy, logprob = aligned(3, num_rows, torch.float32, logprobs.device)
    exploit, explore = torch.empty_like(logprobs), torch.empty_like(logprobs)
    entropies = logprobs.new_empty(num_rows, num_layers + 1) if rows.any_trace else logprobs.new_empty(0)
    if num_rows:
        width = width_of(num_candidates, has_fixed_width)
        num_widest = triton.next_power_of_2(max(num_layers, max_layers) + 1)
        mix_and_sample_kernel[(num_rows,)](
            logprobs.contiguous(),
            final.candidate_ids.contiguous(),
            lse.contiguous(),
            logits.contiguous(),
            final.explored,
            final.explore_mask,
            rows.depth,
            rows.normalize_layers,
            rows.greedy,
            rows.exploit,
            inputs.token_uniform.contiguous(),
            token_ids,
            ok,
            depth,
            confidence,
            exploit,
            explore,
            entropy,
            logprob,
            entropies,
            num_rows,
            num_candidates,
            num_layers,
            int(rows.any_trace),
            LAYERS=num_widest,
            TINIEST=TINY,
            BLOCK=width,
            num_warps=min(8, max(1, num_widest * width // VALUES_PER_WARP)),
        )
    return LedStep(
        token_ids=token_ids,
        ok=ok.view(torch.bool),
        explored=final.explored,
        depth=depth,
        confidence=confidence,
        entropy=entropy if rows.any_trace else None,
        candidate_ids=final.candidate_ids,
        exploit_probs=exploit,
        explore_probs=explore,
        logprob=logprob if rows.any_trace else None,
        depth_entropy=entropies if rows.any_trace else None,
    )
