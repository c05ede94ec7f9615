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


@triton.jit
def entropy_of(probs):  # type: ignore[no-untyped-def]
    """0 log 0 = 0; NaN stays NaN."""
    return tl.sum(tl.where(probs == 0.0, 0.0, -probs * tl.log(tl.where(probs == 0.0, 1.0, probs))), 0)


@triton.jit
def choose(branch, is_column, uniform, is_greedy):  # type: ignore[no-untyped-def]
    """The candidate of a row's token: inverse CDF of the branch in float64, or its arg-max."""
    cumulated = tl.cumsum(branch.to(tl.float64), 0)
    target = tl.max(cumulated, 0) * uniform
    choice = tl.sum(((cumulated <= target) & is_column).to(tl.int32), 0)
    return tl.where(is_greedy, tl.argmax(branch, 0), choice)


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
    num_layers,  # J <= MAX_LAYERS
    is_traced,
    MAX_LAYERS: tl.constexpr,
    TINIEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """agg[j] = normalise(p^L + ... + p^{L-j+1}), explore = agg[argmax_j H(agg[j])], token = inverse CDF of the branch.

    A program: one row. It reads K values of each of J + 1 layers once and holds BLOCK >= K of one layer, of the running
    sum and of the best aggregate, all float32; the cumulated branch is float64.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < num_candidates
    offset = row * num_candidates + columns
    logs = tl.load(logprobs + offset, mask=is_column, other=float("-inf"))
    is_dropped = logs == float("-inf")
    final = tl.exp(logs)
    confidence = tl.exp(tl.load(logprobs + row * num_candidates))
    exploit = final / tl.sum(final, 0)
    is_needed = tl.load(explore_mask + row) != 0
    is_normalized, depth = tl.load(normalized + row) != 0, tl.load(depths + row)

    total, best = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    best_entropy, best_depth, is_broken = -1.0, 1, False
    for j in tl.static_range(MAX_LAYERS + 1):
        layer = final
        is_allowed = (j < depth) & (j <= num_layers)
        if j > 0:  # what is beyond the row's depth is not read, and what is made of it not used
            row_lse = tl.load(lse + (j - 1) * num_rows + row, mask=is_allowed, other=0.0)
            layer_at = logits + (j - 1) * num_rows * num_candidates + offset
            values = tl.load(layer_at, mask=is_column & is_allowed, other=0.0)
            # +inf - +inf is NaN: a row whose log-sum-exp overflowed must not pass as probability 0.
            layer = tl.exp(values - row_lse) + (row_lse - row_lse)  # Eq. 2
            layer = tl.where(is_dropped, 0.0, layer)
        layer = tl.where(is_normalized, layer / tl.maximum(tl.sum(layer, 0), TINIEST), layer)
        total += layer
        aggregate = total / tl.sum(total, 0)  # Eq. 4
        entropy = entropy_of(aggregate)  # Eq. 5
        is_broken = is_broken | (is_allowed & (entropy != entropy))
        is_best = is_allowed & (entropy > best_entropy)  # Eq. 6; ties to the smaller depth
        best = tl.where(is_best, aggregate, best)
        best_entropy = tl.where(is_best, entropy, best_entropy)
        best_depth = tl.where(is_best, j + 1, best_depth)
        entropy_at = out_entropies + row * (num_layers + 1) + j
        tl.store(entropy_at, tl.where(is_allowed, entropy, -1.0), mask=(is_traced != 0) & (j <= num_layers))
    explore = tl.where(is_needed, best, exploit)
    is_fine = (confidence > 0.0) & ((is_broken == 0) | (is_needed == 0))

    branch = tl.where(tl.load(explored + row) != 0, explore, exploit)
    choice = choose(branch, is_column, tl.load(uniforms + row), tl.load(greedy + row) != 0)
    choice = tl.where(is_fine, choice, 0)

    tl.store(out_ids + row, tl.load(ids + row * num_candidates + choice))
    tl.store(out_ok + row, is_fine.to(tl.uint8))
    tl.store(out_depth + row, tl.where(is_needed, best_depth, 1))
    tl.store(out_confidence + row, confidence)
    tl.store(out_exploit + offset, exploit, mask=is_column)
    tl.store(out_explore + offset, explore, mask=is_column)
    if is_traced != 0:
        tl.store(out_entropy + row, tl.where(is_needed, best_entropy, entropy_of(exploit)))
        share = tl.where(tl.load(exploits + row) != 0, confidence, 0.0)
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
            MAX_LAYERS=max(num_layers, max_layers),
            TINIEST=TINY,
            BLOCK=width_of(num_candidates, has_fixed_width),
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
