"""SGLang's stock speculative decoding on the CPU platform: what its workers expect of a device, in plain PyTorch.

The workers, their schedules and what they accept are SGLang's; a GPU's kernels have replacements here, and so has the
attention over a tree of draft tokens. Nothing of this package is imported without `--speculative-algorithm`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ALGORITHMS", "check", "refuse"]

ALGORITHMS = ("NGRAM", "STANDALONE", "EAGLE", "EAGLE3")
"""What was run on this platform, by the names of SGLang's SpeculativeAlgorithm; NEXTN is EAGLE's other name."""

UNSUPPORTED = ("speculative_use_rejection_sampling", "speculative_adaptive", "enable_multi_layer_eagle")


def refuse(algorithm: str) -> None:
    """Raise ValueError for an algorithm that this platform does not serve."""
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"--speculative-algorithm {algorithm} is not served by led_sglang's CPU platform, "
            f"which serves {', '.join(ALGORITHMS)}"
        )


def check(server_args: Any) -> None:
    """Raise ValueError for an option of speculative decoding that this platform does not serve."""
    for field in UNSUPPORTED:
        if getattr(server_args, field, False):
            flag = field.replace("_", "-")
            raise ValueError(f"--{flag} is not served by led_sglang's CPU platform: leave it out, or serve on a GPU")
