"""SGLang's platform interface for plain PyTorch on the CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from led_sglang.cpu_platform import deterministic, parallel, products, sampling

__all__ = ["TorchCpuPlatform"]

logger = logging.getLogger(__name__)

THREADS_BIND = "SGLANG_CPU_OMP_THREADS_BIND"
NUM_THREADS = "OMP_NUM_THREADS"
DEFAULT_MAX_TOTAL_TOKENS = 32768
"""Default tokens of KV cache. Without it SGLang takes a fixed share of the machine's memory."""


def bind_threads(ranks: int, cores: list[int]) -> str:
    """Cores of each rank as SGLang writes them, "0,1|2,3": an equal share each, or a shared core if too few."""
    size = max(1, len(cores) // ranks)
    shares = [[cores[(rank * size + i) % len(cores)] for i in range(size)] for rank in range(ranks)]
    return "|".join(",".join(map(str, share)) for share in shares)


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Runs every layer's `forward_native` with torch's own attention; no graphs, no compiled kernels."""

    # Out of tree, not CPU: "CPU" is what SGLang calls the engine with its own AMX kernels.
    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    _moves_drafts = False  # whether a speculative worker was made, whose accepted tokens move in the cache

    def get_device(self, device_id: int | None = None) -> str:
        # A string: SGLang compares the device of its arguments with "cpu", and a torch.device never equals one. There
        # is one CPU, so tensor-parallel ranks have no index.
        return "cpu"

    def init_backend(self) -> None:
        """Called where a model will run: fast decode steps, and what determinism needs."""
        # Not at the top: SGLang needs the platform before its attention modules can be imported.
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        from led_sglang.cpu_platform.attention import PagedAttention

        register_attention_backend("torch_native")(PagedAttention)
        deterministic.install()
        parallel.install()
        products.install()
        sampling.install()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Sets the arguments that plain PyTorch needs, where they have no other value."""
        if server_args.device != "cpu":
            return
        if getattr(server_args, "speculative_algorithm", None):
            from led_sglang.cpu_platform import speculative

            speculative.check(server_args)
        # SGLang fills in "intel_amx" for any CPU before this call; its kernels are not installed.
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = "torch_native"
        if server_args.enable_deterministic_inference:
            deterministic.allow()
        if server_args.sampling_backend is None:
            server_args.sampling_backend = "pytorch"
        # Not where a share of the memory is given; the context has to fit in.
        if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
            server_args.max_total_tokens = max(DEFAULT_MAX_TOTAL_TOKENS, server_args.context_length or 0)
        # A scheduler that spins while it is idle occupies a core that the next request needs.
        server_args.sleep_on_idle = True
        # The older spelling of data-parallel attention counts its ranks, which are tensor-parallel ones, in dp_size.
        replicas = 1 if server_args.enable_dp_attention else server_args.dp_size
        ranks = server_args.tp_size * server_args.pp_size * replicas
        if ranks > 1:
            # Read by the ranks, which inherit it. Unset, SGLang refuses more ranks than the machine has NUMA nodes, and
            # each starts a thread for every core, which makes every operator up to 40 times slower.
            cores = sorted(os.sched_getaffinity(0))
            os.environ.setdefault(THREADS_BIND, bind_threads(ranks, cores))
            os.environ.setdefault(NUM_THREADS, str(max(1, len(cores) * server_args.nnodes // ranks)))

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        from led_sglang.cpu_platform.speculative import ALGORITHMS

        return algorithm in ALGORITHMS

    def get_speculative_worker_cls(self, algorithm: str) -> None:
        """SGLang's own worker, whose kernels are replaced here: it is imported after this call."""
        from sglang.srt.runtime_context import get_spec

        from led_sglang.cpu_platform import speculative

        speculative.refuse(algorithm)
        speculative.check(get_spec())  # again: some models switch options on by themselves
        from led_sglang.cpu_platform.speculative.install import install

        install()
        self._moves_drafts = True

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        from led_sglang.cpu_platform.speculative.cache_slots import assign_extend_cache_locs

        return assign_extend_cache_locs

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        if kind != "mha" or not self._moves_drafts:
            return None
        from led_sglang.cpu_platform.speculative.kv_pool import MovableKVPool

        return MovableKVPool

    # SGLang 0.5.17 builds these classes for every out-of-tree platform; None (SGLang's default) came later.

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

        return MLATokenToKVPool

    def get_paged_allocator_cls(self) -> type | None:
        if hasattr(SRTPlatform, "get_kv_pool_cls"):
            return None
        from led_sglang.cpu_platform.allocator import SingleTokenPageAllocator

        return SingleTokenPageAllocator
