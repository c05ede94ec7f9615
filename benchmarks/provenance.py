"""Where a measurement came from: machine, versions, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """For every line under results/."""
    root = Path(__file__).parent.parent
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(root),
        "device": device,
        "sglang": _version("sglang"),
        "torch": _version("torch"),
    }


def _commit(root: Path) -> str:
    """ "unknown" in a copy without history, and where there is no git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "unknown"
    return found or "unknown"


def _version(package: str) -> str | None:
    """None where it is not installed: the op benchmarks run without SGLang."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
