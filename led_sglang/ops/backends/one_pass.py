"""The one-pass form: latent rows ride in the LM head's own weight pass, before anyone knows which rows will explore.

A small batch waits for the head's weight, not for its arithmetic: rows beside the final ones are all but free there,
and a second read of the weight is not. The coin's uniform does not depend on p: rows that will hardly explore stay out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops import arrays
from led_sglang.ops.backends.lm_head import finish_logits, known_normalizers, tile_width
from led_sglang.ops.types import Head, LedRows, Ridden

BACKENDS = ("fused", "compiled", "triton")  # that can use what rode
# A row explores where its uniform is below 1 - max p. Above this cut it does so only where max p < 0.2, and then the
# second pass serves it.
CUT = 0.8
# Where both forms cost the same on one H200 with a 4 B model, computed from bytes and operations; not measured yet.
MAX_ROWS = 51


def form_of(num_rows: int, asked: str, device: torch.device) -> str:
    """The form for a batch of so many rows: "one_pass" or "coin_first".

    "auto": one pass up to MAX_ROWS where the host cannot look. Where it can (CPU), the rows that explore are known for
    nothing before the latents are touched, and a small product is bound by arithmetic: nothing is gained by riding.
    """
    if asked != "auto":
        return asked
    return "one_pass" if num_rows <= MAX_ROWS and not arrays.can_look(device) else "coin_first"


def cut_of(backend: str, device: torch.device) -> float:
    """Plain torch with fixed shapes computes all rows anyway: none is left out, and none needs a second pass."""
    return 1.0 if backend == "fused" and not arrays.can_look(device) else CUT


def wanted_rows(rows: LedRows, coin: Tensor, cut: float) -> Tensor:
    """(R,) bool: the rows whose latents should ride. No host sync. Norm and offset are for the second pass."""
    wanted = rows.active & (rows.depth > 1)
    if cut < 1.0:
        wanted = wanted & ((coin < cut) | ~rows.exploit | rows.full)
    if rows.any_norm:
        wanted = wanted & ~rows.latent_norm
    if rows.any_offset:
        wanted = wanted & (rows.latent_offset == 0)
    return wanted


def board(
    rows: LedRows, coin: Tensor, cut: float, index: Tensor | None, wanted: Tensor, tau: Tensor, backend: str
) -> None:
    """Write which rows should ride and their temperatures into wanted (B,) bool and tau (B,) float32 of the batch.

    index: (R,) int64, the rows' places in the batch; None: its first R. Other places keep what they hold.
    """
    if backend == "triton" and not arrays.can_look(coin.device):
        from led_sglang.ops.kernels.one_pass_mask import board as board_in_one_kernel

        board_in_one_kernel(rows, coin, cut, index, wanted, tau)
        return
    places = slice(len(coin)) if index is None else index
    wanted[places], tau[places] = wanted_rows(rows, coin, cut), row_tau(rows)


def ridden_of(rows: LedRows, normalizers: Tensor, rode: Tensor, cut: float) -> Ridden:
    """What `led_step` is told: (J, R) log-sum-exps and the rows that rode, which may be fewer than were wanted."""
    return Ridden(normalizers, rode, is_complete=cut >= 1.0 and not rows.any_norm and not rows.any_offset)


def head_pass(
    hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, wanted: Tensor, normalizers: Tensor, backend: str
) -> Tensor:
    """The head's product of the final rows and the latents' log-sum-exps from one read of the weight.

    hidden (B, H): the normed final states; latents (J, B, H): un-normed, in the order of `led_step`; tau (B,) float32;
    wanted (B,) bool. Writes normalizers (J, B) float32 where wanted: log sum exp(logit / tau) over this rank's rows of
    the vocabulary, with the head's bias, scale and soft cap; elsewhere any value. Returns (B, V_shard) in the weight's
    dtype: the bare product, padding included, as the engine computes it. Graph-safe where the host cannot look.

    The final rows' last bits are those of a product with more rows: matrix libraries choose their summation order by
    the number of rows. Where they must equal the engine's own, let the engine multiply and use `ride_alone`.
    """
    if head.project is not None or backend not in BACKENDS:
        raise ValueError(f"the one-pass form needs a head with a weight and a backend of {', '.join(BACKENDS)}")
    if backend == "triton":
        from led_sglang.ops.kernels.lm_head import head_pass as triton_head_pass

        return triton_head_pass(hidden, latents, head, tau, wanted, normalizers)
    index = wanted.nonzero().squeeze(1) if arrays.can_look(hidden.device) else None
    riders, rider_tau = (latents, tau) if index is None else (latents.index_select(1, index), tau[index])
    logits, sums = tiled_pass(hidden, riders.flatten(0, 1), head, rider_tau.repeat(len(latents))[:, None])
    write(normalizers, index, sums.view(riders.shape[:2]))
    return logits


def tiled_pass(hidden: Tensor, riders: Tensor, head: Head, tau: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H), (N, H), (N, 1) -> (B, V_shard), (N,): every vocabulary tile of the weight is read once for all rows."""
    num_final, weight = len(hidden), head.weight
    rows = torch.cat([hidden.to(weight.dtype), riders])  # (B + N, H)
    logits = rows.new_empty(num_final, weight.shape[0])
    width, sums = tile_width(len(rows), rows.device, head.is_batch_invariant), []
    for start in range(0, weight.shape[0], width):
        product = F.linear(rows, weight[start : start + width])  # (B + N, width)
        logits[:, start : start + width] = product[:num_final]
        stop = min(start + width, head.num_rows)
        if start < stop:  # the rest is padding
            latent = product[num_final:, : stop - start]
            latent = latent.float() if head.bias is None else latent.float() + head.bias[start:stop].float()
            sums.append(finish_logits(latent, head, tau).logsumexp(-1))
    if not sums:
        return logits, tau.new_full((len(riders),), -torch.inf)
    return logits, torch.stack(sums).logsumexp(0)


def ride_alone(latents: Tensor, head: Head, tau: Tensor, wanted: Tensor, normalizers: Tensor) -> None:
    """The same log-sum-exps beside a product that the engine makes itself: two reads, and the engine's own last bits.

    For the CPU: reads where the rows are.
    """
    index = wanted.nonzero().squeeze(1)
    if len(index):
        write(normalizers, index, known_normalizers(latents.index_select(1, index), head, tau[index, None], None))


def write(normalizers: Tensor, index: Tensor | None, values: Tensor) -> None:
    if index is None:
        normalizers.copy_(values)
    else:
        normalizers.index_copy_(1, index, values)


def row_tau(rows: LedRows) -> Tensor:
    """(R,) float32: 1 where greedy."""
    return rows.temperature.masked_fill(rows.greedy, 1.0) if rows.any_greedy else rows.temperature
