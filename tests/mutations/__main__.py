"""The command: a line per mutation, "killed" or "SURVIVED". Exit status 1: one survived, or a test fails as it is."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.mutations.lists import LISTS, ROOT, Mutation, read

PASSED, FAILED = 0, 1  # pytest's exit status


def copy_tree(folder: Path) -> None:
    """What git tracks, and new files that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def outcome(folder: Path, tests: Iterable[str]) -> int:
    """pytest's exit status, PASSED or FAILED. The files `*_checks.py` run under Triton's interpreter, or compile.

    Raises RuntimeError where no test ran.
    """
    tests = list(tests)
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    if any("_checks.py" in test for test in tests):
        options += ["-o", "python_functions=check_* test_*"]
        is_compiled = any(word in test for test in tests for word in ("gpu_cost", "warm_up", "capture_order"))
        env["TRITON_INTERPRET"] = str(int(not is_compiled))
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (PASSED, FAILED):
        raise RuntimeError(f"no test of {tests} ran:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode


def is_killed(mutation: Mutation, folder: Path) -> bool:
    file = folder / mutation.file
    before = file.read_text(encoding="utf-8")
    file.write_text(mutation.applied(before), encoding="utf-8")
    try:
        return outcome(folder, mutation.tests) == FAILED
    finally:
        file.write_text(before, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=LISTS, help="of a list; all without")
    parser.add_argument("findings", nargs="*", help="those that begin so")
    parser.add_argument("--as-they-are", action="store_true", help="first run the tests without a mutation")
    args = parser.parse_args(argv)
    chosen = [mutation for name in ([args.name] if args.name else LISTS) for mutation in read(name)]
    if args.findings:
        chosen = [mutation for mutation in chosen if mutation.finding.startswith(tuple(args.findings))]
    num_survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        for tests in dict.fromkeys(mutation.tests for mutation in chosen) if args.as_they_are else ():
            if outcome(folder, tests) != PASSED:
                print(f"fails as it is  {' '.join(tests)}", flush=True)
                num_survivors += 1
        for mutation in chosen:
            start = time.monotonic()
            killed = is_killed(mutation, folder)
            num_survivors += not killed
            seconds = time.monotonic() - start
            word = "killed" if killed else "SURVIVED"
            print(f"{word:9} {mutation.finding:12} {mutation.fault} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen)} mutations, {num_survivors} survived")
    return int(num_survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
