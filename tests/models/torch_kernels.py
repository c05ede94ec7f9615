"""What the CPU platform lacks of some architectures, in plain torch: arithmetic of kernels that SGLang has for GPUs.

Only the matrix uses it. What is judged is which layers' outputs are kept; these parts of the rows that need them are
computed here, in a process that nobody serves from.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from tests.models import recurrent

NAME = "triton"  # whose place the attention of this file takes: models ask for one of a few by name


def install() -> None:
    soft_cap()
    rotary_embedding()
    attention()
    gates()
    minimax_norm()
    recurrent.install()


def soft_cap() -> None:
    """A Triton kernel."""
    from sglang.srt.layers import logits_processor

    def softcap(logits: Tensor, cap: float) -> None:
        logits.div_(cap).tanh_().mul_(cap)

    logits_processor.fused_softcap = softcap


def rotary_embedding() -> None:
    """SGLang's for a CPU knows deepseek_yarn alone."""
    from sglang.srt.layers.rotary_embedding import factory

    factory.get_rope_cpu = lambda *args: factory.get_rope(*args[:8])  # without the device


def attention() -> None:
    """Latent attention is computed in the latent space in a prefill too, as in a decode step."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    register_attention_backend(NAME)(PlainAttention)
    AttentionBackendRegistry.register(NAME, lambda *args: AttnForwardMethod.MLA)


class PlainAttention(TorchNativeAttnBackend):
    """Heads whose keys and values are of different widths, sliding windows and attention sinks, a request at a time."""

    def forward_extend(self, *args: Any, **named: Any) -> Tensor:
        return self._attend(lambda batch: batch.extend_seq_lens.tolist(), *args, **named)

    def forward_decode(self, *args: Any, **named: Any) -> Tensor:
        return self._attend(lambda batch: [1] * len(batch.req_pool_indices), *args, **named)

    def _attend(
        self,
        new_of: Callable[[Any], list[int]],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        pool, number, batch = self.token_to_kv_pool, layer.layer_id, forward_batch
        if save_kv_cache and k is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        keys, values = pool.get_key_buffer(number), pool.get_value_buffer(number)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = queries.new_zeros(len(queries), layer.tp_q_head_num, layer.v_head_dim)
        start, requests = 0, batch.req_pool_indices.tolist()
        for request, num_new, length in zip(requests, new_of(batch), batch.seq_lens.tolist(), strict=True):
            slots = self.req_to_token_pool.req_to_token[request, :length].long()
            if self.use_sliding_window_kv_pool and pool.layers_mapping[number][1]:
                slots = pool.translate_loc_from_full_to_swa(slots)
            output[start : start + num_new] = attended(
                queries[start : start + num_new], keys[slots], values[slots], layer, sinks
            )
            start += num_new
        return output.flatten(1)


def attended(queries: Tensor, keys: Tensor, values: Tensor, layer: Any, sinks: Tensor | None) -> Tensor:
    """(n, h, d), (m, g, d), (m, g, e) -> (n, h, e): of the last n of m tokens. A sink takes part and adds nothing."""
    num_new, num_heads, _ = queries.shape
    group = num_heads // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,mhd->hnm", queries, keys) * layer.scaling
    if layer.logit_cap:
        scores = layer.logit_cap * torch.tanh(scores / layer.logit_cap)
    at, key_at = torch.arange(len(keys) - num_new, len(keys))[:, None], torch.arange(len(keys))[None]
    is_seen = key_at <= at
    if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
        is_seen &= key_at >= at - layer.sliding_window_size
    scores = scores.masked_fill(~is_seen, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(-1, num_new, 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hnm,mhe->nhe", weights, values)


def gates() -> None:
    """Of a shared expert, and of Qwen3.5's attention: Triton kernels."""
    from sglang.srt.models import qwen2_moe, qwen3_5

    def gate(hidden: Tensor, weight: Tensor, shared: Tensor, output: Tensor) -> None:
        output.add_(torch.sigmoid(hidden @ weight.reshape(-1, 1)) * shared)

    qwen2_moe.fused_gate_sigmoid_mul_add = gate
    qwen3_5.fused_sigmoid_mul = lambda output, gate, inplace: output * torch.sigmoid(gate).reshape(output.shape)


def minimax_norm() -> None:
    """A norm over the heads of all ranks: two Triton kernels with a sum over the ranks between them."""
    from sglang.srt.models import minimax_m2

    def naive(self: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.stack([q.square().sum(-1), k.square().sum(-1)])
        if self._world_size > 1:
            sums = minimax_m2.attn_tp_all_reduce(sums)
        q_mean, k_mean = (total / (each.shape[-1] * self._world_size) for total, each in zip(sums, (q, k), strict=True))
        return (
            q * torch.rsqrt(q_mean + self._eps)[:, None] * self._q_norm.weight,
            k * torch.rsqrt(k_mean + self._eps)[:, None] * self._k_norm.weight,
        )

    minimax_m2.MiniMaxM2QKRMSNorm._forward_naive = naive
