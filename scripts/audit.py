#!/usr/bin/env python3
"""Known vulnerabilities in the packages of the extras that SGLang does not bring itself.

    .venv/bin/python scripts/audit.py          # queries the package index's vulnerability service
    .venv/bin/python scripts/audit.py --list   # the packages alone

Exits 1 if one is known to be vulnerable, and also if one could not be looked up: silence is no clean bill.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution

EXTRAS = ("dev", "evals", "gateway", "test")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Direct requirements that hold here: those without an extra, and those of `extras`."""
    from packaging.requirements import Requirement

    found = set()
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(env) for env in environments):
            found.add(normalised(requirement.name))
    return found


def closure(names: set[str], leave_out: frozenset[str] = frozenset()) -> set[str]:
    """`names` and all that they need, as far as it is installed."""
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        if name in seen or name in leave_out:
            continue
        try:
            waiting |= needs(name)
        except PackageNotFoundError:
            continue
        seen.add(name)
    return seen


def additions() -> list[str]:
    """Pins of what our extras bring beyond SGLang's own requirements."""
    sglang = frozenset(closure({"sglang"}))
    ours = closure(needs("led_sglang", EXTRAS), leave_out=sglang | {"led-sglang"})
    return sorted(f"{name}=={distribution(name).version}" for name in ours)


def main() -> int:
    pins = additions()
    print("\n".join(pins), flush=True)
    if "--list" in sys.argv[1:]:
        return 0
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        audit = [sys.executable, "-m", "pip_audit", "--strict", "--no-deps", "--disable-pip", "-r", file.name]
        return subprocess.run(audit, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
