"""One part of the kit in a process of its own: `kit` starts it, reads its lines and goes on if it dies.

    python -m benchmarks.gpu.part MODULE --part NAME --lines FILE --state FILE ...

A part is a module with `units(args)`: functions by name that yield lines. Each line is written at once. A unit that
raises is a line with its traceback, and the next unit begins; where the device is lost with it, the process ends with
LOST, and `kit` starts another for the units that are left.
"""

import argparse
import faulthandler
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.gpu.loops import require_loops

LOST = 3  # exit status: the device answers no more in this process
MAX_TRACEBACK = 3000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("--part", required=True)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="of the kit, as JSON")
    return parser.parse_args(argv)


def append(path: Path, line: dict[str, Any]) -> None:
    """In one write: a process that is killed leaves whole lines."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def source(commit: str | None) -> dict[str, Any]:
    """Where a line came from: GPU, driver, versions, commit, date."""
    import torch

    from benchmarks.provenance import provenance

    found = provenance() | {"driver": _driver(), "triton": _triton(), "python": platform.python_version()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["capability"] = f"{properties.major}.{properties.minor}"
    return found | ({"commit": commit} if commit else {})


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def is_lost(device: Any) -> bool:
    """Whether the device is of no more use to this process, as after an illegal access."""
    import torch

    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return torch.ones(1, device=device).item() != 1.0
    except Exception:
        return True


def run_units(
    found: dict[str, Callable[[], Any]], emit: Callable[[dict[str, Any]], None], state: Path, device: Any
) -> int:
    """Exit status: 0 when every unit was run, whatever its lines say; LOST."""
    begun: list[str] = json.loads(state.read_text()) if state.exists() else []
    for name, unit in found.items():
        if name in begun:
            continue
        begun.append(name)
        state.write_text(json.dumps(begun))
        try:
            for line in unit():
                emit({"unit": name, **line})
        except Exception as error:
            traceback.print_exc()
            text = traceback.format_exc()[-MAX_TRACEBACK:]
            emit({"unit": name, "kind": "fault", "error": f"{type(error).__name__}: {error}", "traceback": text})
            if is_lost(device):
                return LOST
    return 0


def main(argv: list[str] | None = None) -> int:
    faulthandler.enable()  # a signal says where it struck
    args = parse_args(argv)
    fault = require_loops()
    import torch

    options = argparse.Namespace(**args.options)
    module = import_module(args.module)
    uses_device = getattr(module, "USES_DEVICE", True) and not options.dry_run
    options.device = torch.device("cuda" if uses_device else "cpu")
    has_own = uses_device or not torch.cuda.is_available()
    facts = source(options.commit) if has_own else _source_elsewhere(options.commit)
    if fault is not None:
        print(f"numba is not used: {fault}", file=sys.stderr)

    def emit(line: dict[str, Any]) -> None:
        append(args.lines, {"part": args.part, "kind": "result", **line, **facts, "dry_run": options.dry_run})

    with torch.inference_mode():
        found = {name: unit for name, unit in module.units(options).items() if _is_wanted(name, options.units)}
        return run_units(found, emit, args.state, options.device)


def _source_elsewhere(commit: str | None) -> dict[str, Any]:
    """By another process: asking torch for the GPU's name takes some of its memory until the process ends."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(source, commit).result()


def _is_wanted(name: str, patterns: list[str] | None) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a lost device can hang the interpreter's own end
