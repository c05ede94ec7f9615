"""All that one lease of a GPU has to tell, in one command: correctness, graph capture, times of the step, tiles.

    python -m benchmarks.gpu.kit --out DIR --minutes 9        # torch and triton are enough
    python -m benchmarks.gpu.kit --out DIR --parts server      # needs SGLang; its own lease
    TRITON_INTERPRET=1 python -m benchmarks.gpu.kit --out DIR --dry-run   # on a CPU, tiny sizes

Each part is a process with a time limit of its own: what fails in one is a line, and loses nothing of the others.
DIR gets lines.jsonl, log.txt and summary.md. Exit status 1: something failed, the summary says what. Read
benchmarks/gpu/README.md first.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import summary
from benchmarks.gpu.part import LOST, append
from benchmarks.gpu.server_modes import MODES

ROOT = Path(__file__).parents[2]
ROWS = [1, 8, 32, 48, 64, 256]
MAX_STARTS = 4  # of one part's process
MIN_PART_S = 8.0  # less is not worth a start
RESERVE_S = 12.0  # for the summary, and for what a killed process takes to end
MAX_LOG_TAIL = 2000


@dataclass(frozen=True)
class Part:
    name: str
    module: str
    limit_s: float
    is_default: bool = True


PARTS = (
    Part("correct", "benchmarks.gpu.correct", 150),
    Part("capture_order", "benchmarks.gpu.capture_order", 60),
    Part("ops", "benchmarks.gpu.ops", 240),
    Part("tiles", "benchmarks.gpu.tiles", 90),
    Part("server", "benchmarks.gpu.server", 1800, is_default=False),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for lines, log and summary; made if missing")
    parser.add_argument("--minutes", type=float, default=9.0, help="the kit ends within so many; default 9")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all but server")
    parser.add_argument("--units", nargs="+", metavar="PATTERN", help="of the parts, e.g. 'bfloat16/*'; default all")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on CPU: proves the script alone")
    parser.add_argument("--rows", type=int, nargs="+", help="batch sizes; default 1 8 32 48 64 256")
    parser.add_argument("--explore-rate", type=float, default=0.1, help="share of rows that explore")
    parser.add_argument("--repeats", type=int, default=30, help="samples of each time")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="of the server; default all, dry: auto")
    parser.add_argument("--commit", help="what the lines say, where the copy has no history")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()  # a part's process runs elsewhere
    args.rows = args.rows or ([1, 3] if args.dry_run else ROWS)
    args.modes = args.modes or (["auto"] if args.dry_run else list(MODES))
    args.repeats = 1 if args.dry_run else args.repeats
    for name, value, low in (("minutes", args.minutes, 0.2), ("repeats", args.repeats, 1), ("rows", min(args.rows), 1)):
        if value < low:
            parser.error(f"--{name} {value}: at least {low}")
    if not 0 <= args.explore_rate <= 1:
        parser.error(f"--explore-rate {args.explore_rate}: 0 to 1")
    return args


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a part's process is told."""
    names = ("dry_run", "rows", "explore_rate", "repeats", "modes", "units", "commit")
    return {name: getattr(args, name) for name in names}


@dataclass
class Folder:
    path: Path

    @property
    def lines(self) -> Path:
        return self.path / "lines.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def mend(self) -> None:
        """A process that was killed while it wrote must not lose the next one's line too."""
        if self.lines.exists():
            text = self.lines.read_bytes()
            if text and not text.endswith(b"\n"):
                self.lines.write_bytes(text + b"\n")


def run_part(part: Part, options: dict[str, Any], folder: Folder, limit_s: float) -> None:
    """All of a part's units, over several processes where one dies. Faults become lines."""
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "begun.json"
        for _ in range(MAX_STARTS):
            known = _begun(state)
            left_s = deadline - time.monotonic()
            if left_s < min(MIN_PART_S, limit_s / 4):
                _fault(folder, part, None, f"no time is left; {_rest(known)}")
                return
            status, end_of_log = _run_process(part, options, folder, state, left_s)
            folder.mend()
            begun = _begun(state)
            if status == 0:
                return
            if status is None:
                _fault(folder, part, begun, f"took longer than {limit_s:.0f} s and was ended", end_of_log)
                return
            if status != LOST:  # it told of its own fault then
                _fault(folder, part, begun, _words(status), end_of_log)
            if begun == known:  # not even one unit further: another start would end the same
                return
        _fault(folder, part, None, f"{MAX_STARTS} processes died; {_rest(_begun(state))}")


def _rest(begun: Sequence[str]) -> str:
    return f"units after {begun[-1]} were not run" if begun else "no unit was run"


def _begun(state: Path) -> list[str]:
    try:
        found: list[str] = json.loads(state.read_text())
    except (OSError, ValueError):
        return []
    return found


def _run_process(
    part: Part, options: dict[str, Any], folder: Folder, state: Path, limit_s: float
) -> tuple[int | None, str]:
    """Exit status, None where the time ran out, and the end of what it printed."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", part.module, "--part", part.name]
    command += ["--lines", str(folder.lines), "--state", str(state), "--options", json.dumps(options)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with folder.log.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    with folder.log.open("rb") as log:
        log.seek(start)
        return status, log.read()[-MAX_LOG_TAIL:].decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all that it started, in groups of their own too. SIGABRT first: Python then prints where it hung."""
    if process.poll() is None:
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3.0)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == process.pid:  # its session is its own
                    os.kill(int(entry.name), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def _words(status: int) -> str:
    if status >= 0:
        return f"exited with {status}"
    return f"ended by signal {-status} ({signal.Signals(-status).name})"


def _fault(folder: Folder, part: Part, begun: Sequence[str] | None, error: str, end_of_log: str = "") -> None:
    unit = begun[-1] if begun else None
    append(folder.lines, {"part": part.name, "kind": "fault", "unit": unit, "error": error, "traceback": end_of_log})


def run(parts: Sequence[Part], args: argparse.Namespace) -> int:
    """Exit status: 1 where a part failed."""
    folder, deadline = Folder(args.out), time.monotonic() + 60 * args.minutes - RESERVE_S
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.lines.exists():
        raise SystemExit(f"kit: {folder.lines} exists: another run's lines are not written over, name another --out")
    for part in parts:
        started, left_s = time.monotonic(), deadline - time.monotonic()
        run_part(part, options_of(args), folder, min(part.limit_s, left_s))
        if not any(line["part"] == part.name for line in summary.read(folder.lines)):
            _fault(folder, part, None, f"nothing ran: no unit is named like {', '.join(args.units or ['*'])}")
        append(folder.lines, {"part": part.name, "kind": "part", "seconds": round(time.monotonic() - started, 1)})
        print(f"{part.name}: {time.monotonic() - started:.0f} s", flush=True)
    lines = summary.read(folder.lines)
    text = summary.render(lines)
    (folder.path / "summary.md").write_text(text)
    print(text, flush=True)
    return 1 if summary.failures(lines) else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    chosen = [part for part in PARTS if (part.name in args.parts if args.parts else part.is_default)]
    return run(chosen, args)


if __name__ == "__main__":
    sys.exit(main())
