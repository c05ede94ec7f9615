"""A KV pool in which PyTorch moves accepted tokens, instead of a Triton kernel that SGLang compiles at the start."""

from __future__ import annotations

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

__all__ = ["MovableKVPool"]


class MovableKVPool(MHATokenToKVPool):
    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True
