"""SGLang on plain PyTorch, for machines without an accelerator.

SGLang's own CPU engine needs kernels that are not published as a wheel. Out-of-tree platforms are supported, and all
layers have a `forward_native`: that is enough to serve, slowly, everything that LED needs.

This module is the entry point and stays light: SGLang calls `activate` in every process, GPU hosts included.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

__all__ = ["PLATFORM_CLASS", "SWITCH", "activate", "find_accelerator"]

logger = logging.getLogger(__name__)

SWITCH = "LED_SGLANG_CPU_PLATFORM"
"""Environment variable; "0" leaves the choice of platform to SGLang."""

PLATFORM_CLASS = "led_sglang.cpu_platform.platform.TorchCpuPlatform"

_TORCH_DEVICES = ("cuda", "xpu", "npu", "hpu", "musa", "mps", "mlu")


def find_accelerator() -> str | None:
    """Names an accelerator of this machine, or None.

    A device node that PyTorch cannot use (an old driver, for example) counts as one: a server that is hundreds of times
    slower than expected would be a silent fallback.
    """
    for name in _TORCH_DEVICES:
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return name
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return _unusable_nvidia_device()


def activate() -> str | None:
    """The `sglang.srt.platforms` entry point: the platform class as a dotted name, or None where it is not needed."""
    if os.environ.get(SWITCH) == "0":
        return None
    # SGLang's own CPU engine was chosen: its kernels are installed.
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    accelerator = find_accelerator()
    if accelerator is not None:
        logger.debug("%s found: led_sglang's CPU platform is not needed", accelerator)
        return None
    return PLATFORM_CLASS


def _unusable_nvidia_device(dev: Path = Path("/dev")) -> str | None:
    # An empty list hides the devices on purpose.
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    nodes = sorted(dev.glob("nvidia[0-9]*"))
    if not nodes:
        return None
    logger.warning(
        "%s exists but PyTorch %s cannot use it, so led_sglang's CPU platform stays off. "
        "Check the driver, or hide the device with CUDA_VISIBLE_DEVICES= to serve without it.",
        nodes[0],
        torch.__version__,
    )
    return str(nodes[0])
