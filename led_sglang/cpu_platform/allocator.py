"""The token allocator that SGLang 0.5.17 takes from an out-of-tree platform; later releases choose their own."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

__all__ = ["SingleTokenPageAllocator"]


class SingleTokenPageAllocator(TokenToKVPoolAllocator):
    """SGLang's own allocator for pages of one token, with the arguments of its paged one.

    The paged one allocates with Triton kernels in that release, which no CPU runs.
    """

    def __init__(
        self, size: int, page_size: int, dtype: torch.dtype, device: str, kvcache: object, need_sort: bool
    ) -> None:
        if page_size != 1:
            raise ValueError(f"led_sglang's CPU platform serves pages of one token; --page-size is {page_size}")
        super().__init__(size, dtype, device, kvcache, need_sort)
