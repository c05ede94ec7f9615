"""Where ranks share the work: what SGLang has for accelerators or its own CPU build alone, in plain torch over gloo."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["install"]


def install() -> None:
    """Put the functions below in the place of SGLang's."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from sglang.srt.layers.moe import fused_moe_native
    from sglang.srt.model_executor import forward_batch_info

    if not hasattr(dp_attention, "memcpy_cpu"):  # SGLang 0.5.17
        return
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True  # read where a batch is padded: no pinned memory, the fill value of a CPU
    parallel_state.reg_all_gather_into_tensor = all_gather
    parallel_state.reg_reduce_scatter_tensor = reduce_scatter
    parallel_state.inplace_all_reduce = all_reduce
    parallel_state.GroupCoordinator.reduce_scatterv = reduce_scatterv
    fused_moe_native.moe_forward_native = local_experts(fused_moe_native.moe_forward_native)


def _group(name: str) -> Any:
    from sglang.srt.distributed import parallel_state

    return parallel_state._groups[name]()


def all_gather(output: Tensor, part: Tensor, group_name: str) -> None:
    """The ranks' parts, one after the other, into `output`; any shapes of as many elements."""
    torch.distributed.all_gather_into_tensor(
        output.view(-1), part.contiguous().view(-1), group=_group(group_name).device_group
    )


def reduce_scatter(output: Tensor, whole: Tensor, group_name: str) -> None:
    """This rank's part of the sum of the ranks' `whole`, into `output`. gloo has none: it sums all of it."""
    group, total = _group(group_name), whole.clone()
    torch.distributed.all_reduce(total, group=group.device_group)
    part = total.reshape(-1)[group.rank_in_group * output.numel() :][: output.numel()]
    output.copy_(part.view_as(output))


def all_reduce(tensor: Tensor, group_name: str) -> None:
    torch.distributed.all_reduce(tensor, group=_group(group_name).device_group)


def reduce_scatterv(self: Any, input_: Tensor, output: Tensor | None = None, sizes: list[int] | None = None) -> Tensor:
    """GroupCoordinator's, without NCCL: sizes, rows of each rank."""
    summed: Tensor = self._deterministic_reduce_scatterv(input_, output, sizes)
    return summed


def local_experts(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """SGLang's loop over experts, of which this rank has some: with expert parallelism others' have the id -1.

    A token's experts are computed one after the other, those of other ranks as the first one, with weight 0: the loop
    takes an expert once for each token.
    """

    @wraps(compute)
    def forward(layer: Any, x: Tensor, topk_output: Any, moe_runner_config: Any) -> Tensor:
        weights, ids, _ = topk_output
        if not (ids < 0).any():
            return compute(layer, x, topk_output, moe_runner_config)
        weights, ids = weights.masked_fill(ids < 0, 0), ids.clamp(min=0)
        columns = zip(weights.split(1, dim=1), ids.split(1, dim=1), strict=True)
        parts = [
            compute(layer, x, topk_output._replace(topk_weights=weight, topk_ids=expert), moe_runner_config)
            for weight, expert in columns
        ]
        return torch.stack(parts).sum(0)

    return forward
