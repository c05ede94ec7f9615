"""Layers that keep a state instead of keys and values, in plain torch, token by token: gated delta nets and Mamba 2.

SGLang has kernels of them for GPUs alone. The states live here, by layer and request slot; a prefill starts anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def install() -> None:
    from sglang.kernels.ops.attention.fla import fused_norm_gate, layernorm_gated
    from sglang.srt.layers.attention.mamba.mamba import MambaMixer2
    from sglang.srt.layers.radix_linear_attention import RadixLinearAttention

    torch.get_device_module = lambda device=None: torch.cpu  # a torch for CUDA names that, with a GPU or without
    RadixLinearAttention.forward = gated_delta_net
    MambaMixer2.forward = mamba2
    fused_norm_gate.FusedRMSNormGated.forward = layernorm_gated.RMSNorm.forward = gated_norm


@dataclass
class State:
    """Of a layer and a request: the inputs that a convolution still needs, and what the recurrence keeps."""

    window: Tensor  # (width - 1, C)
    memory: Tensor

    def convolved(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(n, C) by (C, width): each channel with itself and the tokens before."""
        past = torch.cat([self.window, rows])
        self.window = past[len(rows) :].clone()
        return silu((past.unfold(0, weight.shape[1], 1) * weight).sum(-1) + (0 if bias is None else bias))


@dataclass
class States:
    kept: dict[tuple[int, int], State] = field(default_factory=dict)

    def of(self, layer: Any, slot: int, is_new: bool, window: tuple[int, int], memory: tuple[int, ...]) -> State:
        key = id(layer), slot
        if is_new:
            self.kept[key] = State(torch.zeros(window), torch.zeros(memory))
        return self.kept[key]


STATES = States()


def spans(starts: list[int]) -> Iterator[slice]:
    return (slice(start, end) for start, end in pairwise(starts))


def gated_delta_net(self: Any, forward_batch: Any, mixed_qkv: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """For `RadixLinearAttention.forward`: (T, C), (T, heads) twice -> (1, T, heads, width of a value)."""
    is_new = forward_batch.forward_mode.is_extend()
    slots = forward_batch.req_pool_indices.tolist()
    lengths = forward_batch.extend_seq_lens.tolist() if is_new else [1] * len(slots)
    starts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    output = mixed_qkv.new_zeros(len(mixed_qkv), self.num_v_heads, self.head_v_dim)
    weight = self.conv_weights
    decay = torch.exp(-self.A_log.exp() * softplus(a.float() + self.dt_bias))
    strength = torch.sigmoid(b.float())
    memory = self.num_v_heads, self.head_k_dim, self.head_v_dim
    for slot, rows in zip(slots, spans(starts), strict=True):
        state = STATES.of(self, slot, is_new, (weight.shape[1] - 1, weight.shape[0]), memory)
        mixed = state.convolved(mixed_qkv[rows], weight, self.bias)
        q, k, v = mixed.split([self.q_dim, self.k_dim, self.v_dim], dim=-1)
        group = self.num_v_heads // self.num_k_heads
        q, k = (unit(each.reshape(len(each), -1, self.head_k_dim)).repeat_interleave(group, 1) for each in (q, k))
        v = v.reshape(len(v), -1, self.head_v_dim)
        for token in range(len(mixed)):
            at = rows.start + token
            kept = state.memory * decay[at, :, None, None]
            change = (v[token] - torch.einsum("hk,hkv->hv", k[token], kept)) * strength[at, :, None]
            state.memory = kept + torch.einsum("hk,hv->hkv", k[token], change)
            output[at] = torch.einsum("hk,hkv->hv", q[token] * self.head_k_dim**-0.5, state.memory)
    return output[None]


def unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)


def gated_norm(self: Any, x: Tensor, g: Tensor, *others: Any, **more: Any) -> Tensor:
    """For `FusedRMSNormGated.forward`, and `RMSNorm`'s of the same folder, which norms before its gate here."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
    return normed * (torch.sigmoid(g) if self.activation == "sigmoid" else silu(g))


def mamba2(
    self: Any, *, hidden_states: Tensor, output: Tensor | None = None, layer_cache: Any, metadata: Any, **others: Any
) -> tuple[Tensor, None, None]:
    """For `MambaMixer2.forward`; the states that speculation would keep are not kept."""
    is_new = metadata.num_prefills > 0
    slots = metadata.mamba_cache_indices.tolist()
    starts = metadata.query_start_loc.tolist() if is_new else list(range(len(slots) + 1))
    sizes = (self.intermediate_size, self.conv_dim, self.num_heads)
    gate, mixed, dt = self.in_proj(hidden_states)[0].split([size // self.tp_size for size in sizes], dim=-1)
    dt = softplus(dt.float() + self.dt_bias)  # (T, heads)
    weight = self.conv1d.weight.view(self.conv1d.weight.shape[0], -1)
    num_groups, num_heads = self.n_groups // self.tp_size, self.num_heads // self.tp_size
    result = gate.new_zeros(gate.shape)
    memory = num_heads, self.head_dim, self.ssm_state_size
    for slot, rows in zip(slots, spans(starts), strict=True):
        state = STATES.of(self, slot, is_new, (weight.shape[1] - 1, weight.shape[0]), memory)
        parts = state.convolved(mixed[rows], weight, self.conv1d.bias)
        width = self.groups_ssm_state_size // self.tp_size
        x, keys, queries = parts.split([self.intermediate_size // self.tp_size, width, width], dim=-1)
        x = x.reshape(len(x), num_heads, self.head_dim)
        keys, queries = (
            each.reshape(len(x), num_groups, -1).repeat_interleave(num_heads // num_groups, 1)
            for each in (keys, queries)
        )
        for token in range(len(x)):
            step = dt[rows.start + token]
            written = torch.einsum("hp,hn->hpn", x[token] * step[:, None], keys[token])
            state.memory = state.memory * torch.exp(step * self.A)[:, None, None] + written
            read = torch.einsum("hpn,hn->hp", state.memory, queries[token]) + self.D[:, None] * x[token]
            result[rows.start + token] = read.flatten()
    projected: Tensor = self.out_proj(self.norm.forward_native(result, gate))[0]
    if output is not None:
        output.copy_(projected)
    return projected, None, None
