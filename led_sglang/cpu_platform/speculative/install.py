"""Puts this package's functions in the places where SGLang's workers look for those of a GPU."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from led_sglang.cpu_platform import seeded_draw
from led_sglang.cpu_platform.speculative import cache_slots, trees, verification

__all__ = ["REPLACEMENTS", "install", "offer_ninja", "replace"]

_OPS = "sglang.kernels.ops."
_RECONSTRUCT = "sglang.kernels.ops.speculative.reconstruct_tree"

REPLACEMENTS: dict[str, Any] = {
    _OPS + "speculative.spec_tree.build_tree_kernel_efficient_func": trees.build_tree,
    _OPS + "speculative.spec_tree.verify_tree_greedy_func": verification.verify_tree_greedy,
    _OPS + "speculative.verify_sampling.tree_speculative_sampling_target_only": (
        verification.tree_speculative_sampling_target_only
    ),
    _OPS + "sampling.renorm.top_k_renorm_prob": verification.top_k_renorm_prob,
    _OPS + "sampling.renorm.top_p_renorm_prob": verification.top_p_renorm_prob,
    _OPS + "sampling.murmur_hash.murmur_hash32": seeded_draw.murmur_hash32,
    _OPS + "speculative.cache_locs.assign_draft_cache_locs_contiguous_func": (
        cache_slots.assign_draft_cache_locs_contiguous
    ),
    _OPS + "speculative.cache_locs.fill_front_out_cache_loc_func": cache_slots.fill_front_out_cache_loc,
    _OPS + "speculative.eagle.fill_accept_out_cache_loc_func": cache_slots.fill_accept_out_cache_loc,
    _OPS + "speculative.eagle.fill_bonus_tokens_func": cache_slots.fill_bonus_tokens,
    "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func": cache_slots.assign_req_to_token_pool,
}


def install() -> None:
    """Called before SGLang imports a speculative worker, after `init_backend`. Raises ImportError or AttributeError."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from led_sglang.cpu_platform.speculative.attention import SpeculativeAttention

    register_attention_backend("torch_native")(SpeculativeAttention)
    _provide_reconstruction()
    for target, function in REPLACEMENTS.items():
        replace(target, function)
    _offer_draft_attention()
    _leave_as_written()
    offer_ninja()


def replace(target: str, function: Any) -> None:
    """Set `target`, a dotted name of SGLang, to `function`, in every module that imported it under its own name."""
    module_name, _, name = target.rpartition(".")
    old = getattr(importlib.import_module(module_name), name)
    for module in list(sys.modules.values()):
        is_sglang = isinstance(module, ModuleType) and module.__name__.startswith("sglang.")
        if is_sglang and name in vars(module) and vars(module)[name] is old:
            setattr(module, name, function)


def _offer_draft_attention() -> None:
    """torch_native among the attention backends of a draft model's steps; its extends run in the runner's own."""
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    from led_sglang.cpu_platform.speculative.draft_attention import DraftAttention

    create = DraftBackendFactory._create_backend

    def create_backend(
        self: DraftBackendFactory,
        backend_name: str,
        backend_map: dict[str, Any],
        error_template: str,
        stamps_children: bool = False,
    ) -> Any:
        def torch_native() -> tuple[str, DraftAttention | None]:
            if not stamps_children:  # of an extend, not of steps
                return "torch_native", None
            return "torch_native", DraftAttention(self.draft_model_runner, self.topk, self.speculative_num_steps)

        return create(
            self, backend_name, {**backend_map, "torch_native": torch_native}, error_template, stamps_children
        )

    DraftBackendFactory._create_backend = create_backend


def _leave_as_written() -> None:
    """The choice of candidates runs as it is written: torch.compile would call a C++ compiler in the first request."""
    from sglang.srt.speculative import spec_utils

    wrapped = spec_utils._select_top_k_tokens_later
    spec_utils._select_top_k_tokens_later = getattr(wrapped, "_torchdynamo_orig_callable", wrapped)


def offer_ninja() -> None:
    """NGRAM's lookup is built by ninja, which pip installs beside the interpreter: in a folder that PATH may lack."""
    if shutil.which("ninja") is None:
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))


def _provide_reconstruction() -> None:
    """The module that reconstructs NGRAM's trees: SGLang's own imports sgl_kernel, which no CPU can load."""
    module = ModuleType(_RECONSTRUCT)
    module.reconstruct_indices_from_tree_mask_func = trees.reconstruct_tree  # type: ignore[attr-defined]
    sys.modules[_RECONSTRUCT] = module
