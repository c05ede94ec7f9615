"""Where ranks share the work: what SGLang has for accelerators or its own CPU build alone, in plain torch over gloo."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["install"]


def install() -> None:
    """Put the functions below in the place of SGLang's."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from sglang.srt.model_executor import forward_batch_info

    if not hasattr(dp_attention, "memcpy_cpu"):  # SGLang 0.5.17
        return
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True  # read where a batch is padded: no pinned memory, the fill value of a CPU
    parallel_state.reg_all_gather_into_tensor = all_gather
    parallel_state.reg_reduce_scatter_tensor = reduce_scatter
    parallel_state.inplace_all_reduce = all_reduce
    parallel_state.GroupCoordinator.reduce_scatterv = reduce_scatterv


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
