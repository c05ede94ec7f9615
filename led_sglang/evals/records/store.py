"""One folder a run: `run.json` holds the settings, `samples.jsonl` holds one line for every finished sample.

`results.compact` turns those lines into counts.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from led_sglang.cli import files
from led_sglang.cli.endings import words
from led_sglang.evals.errors import EvalError
from led_sglang.evals.grade.graders import OUTCOMES

__all__ = [
    "COUNTS",
    "SAMPLES",
    "CellKey",
    "Sample",
    "Store",
    "holds_run",
    "lines_locked",
    "read_lines",
    "read_settings",
    "replace_text",
]

SETTINGS, SAMPLES, COUNTS = "run.json", "samples.jsonl", "counts.jsonl"


@dataclass(frozen=True, order=True)
class CellKey:
    """What one number in a table is about."""

    task: str
    method: str
    temperature: float


@dataclass(frozen=True)
class Sample:
    task: str
    method: str
    temperature: float
    question: str
    sample: int  # index among the samples of one question
    seed: int
    outcome: str
    answer: str | None
    detail: str
    tokens: int
    prompt_tokens: int
    finish: str | None
    wall_s: float
    text: str | None = None
    reasoning: str | None = None
    led: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> CellKey:
        return CellKey(self.task, self.method, self.temperature)


SAMPLE_KINDS = [(each.name, str(each.type)) for each in fields(Sample)]

KINDS = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "dict[str, Any]": (dict,),
}
MAX_SAMPLES = 1 << 20  # of a question: its bits are one number
# The types that `read_settings` checks; readers of run.json rely on them.
SETTINGS_KINDS: dict[str, type] = {
    **dict.fromkeys(("fixed", "questions", "num_questions", "applied", "server", "sandbox"), dict),
    **dict.fromkeys(("temperatures", "sessions"), list),
}


def holds_run(folder: Path) -> bool:
    """An empty file of samples alone is what a run leaves that met no server."""
    samples = folder / SAMPLES
    return (folder / SETTINGS).exists() or (samples.exists() and samples.stat().st_size > 0)


def read_lines(path: Path) -> Iterator[Sample]:
    """Every whole line; a last one that a kill cut short is left out. Raises CommandError for any other broken line."""
    if not path.exists():
        return
    for where, line in files.text_lines(path, is_cut_short=True):
        try:
            yield _sample(files.json_object(line, where))
        except (TypeError, ValueError) as error:
            raise EvalError(f"{where}: not a sample: {error}; without the line --resume asks it again") from error


def _sample(row: dict[str, Any]) -> Sample:
    """Raises TypeError, ValueError."""
    sample = Sample(**row)
    for name, kind in SAMPLE_KINDS:
        value = getattr(sample, name)
        if not isinstance(value, KINDS[kind]) or isinstance(value, bool):
            raise TypeError(f"{name} must be {kind}, not {files.kind_of(value)}")
    if not 0 <= sample.sample < MAX_SAMPLES:
        raise ValueError(f"sample must be in [0, {MAX_SAMPLES}), not {sample.sample}")
    if sample.outcome not in OUTCOMES:
        raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {sample.outcome!r}")
    return sample


def read_settings(folder: Path) -> dict[str, Any]:
    """Raises CommandError."""
    path = folder / SETTINGS
    if not path.exists():
        raise EvalError(f"{folder} holds no run: {SETTINGS} is missing")
    settings = files.json_document(path)
    for key, kind in SETTINGS_KINDS.items():
        if not isinstance(settings.get(key, kind()), kind):
            raise EvalError(f"{path} is damaged: {key} must be {files.kind_of(kind())}")
    parts = [*settings.get("sessions", []), *settings.get("applied", {}).values()]
    if not all(isinstance(part, dict) for part in parts):
        raise EvalError(f"{path} is damaged: sessions and applied must hold objects")
    numbers = [*settings.get("temperatures", []), *(part.get("wall_s", 0) for part in settings.get("sessions", []))]
    if not all(isinstance(number, int | float) for number in numbers):
        raise EvalError(f"{path} is damaged: temperatures, and wall_s of sessions, must be numbers")
    return settings


def replace_text(path: Path, text: str) -> None:
    """A kill leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".new")
    files.write_text(temporary, text)
    temporary.replace(path)


@contextmanager
def lines_locked(folder: Path) -> Iterator[IO[bytes]]:
    """The run's lines, to append to. Raises EvalError where that cannot be, or another process does."""
    path = folder / SAMPLES
    try:
        opened = path.open("ab")
    except OSError as error:
        raise EvalError(f"{path} cannot be written to: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvalError(f"another run is writing to {folder}") from None
        yield file


class Store:
    """Appends samples as they finish; locked, so that no second run writes into the folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self.settings = settings
        self._resume = resume
        self._file: IO[bytes] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Store:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._file = stack.enter_context(lines_locked(self.folder))
            self._check(self.folder / SAMPLES)
            self._open = stack.pop_all()
        self.save_settings()
        return self

    def _check(self, path: Path) -> None:
        assert self._file is not None
        size = path.stat().st_size
        has_run = holds_run(self.folder)
        if has_run and not self._resume:
            raise EvalError(f"{self.folder} already holds a run: continue it with --resume, or choose another --out")
        if not has_run:
            return
        before = read_settings(self.folder)
        for key, value in self.settings["fixed"].items():
            if before.get("fixed", {}).get(key) != value:
                was = before.get("fixed", {}).get(key)
                raise EvalError(f"--resume: {key} was {was!r} in {self.folder} and is {value!r} now")
        was, now = before.get("prompts", "ours"), self.settings.get("prompts", "ours")
        if was != now:
            raise EvalError(f"--resume: --prompts was {was} in {self.folder} and is {now} now")
        for task, mark in before.get("questions", {}).items():
            if self.settings["questions"].get(task, mark) != mark:
                raise EvalError(f"--resume: the questions of {task} are not those of the run in {self.folder}")
        self.settings["questions"] = {**before.get("questions", {}), **self.settings["questions"]}
        self.settings["sessions"] = before.get("sessions", [])
        self._cut_partial_line(path, size)

    def _cut_partial_line(self, path: Path, size: int) -> None:
        assert self._file is not None
        with path.open("rb") as file:
            end = size
            while end > 0:
                start = max(0, end - (1 << 16))
                file.seek(start)
                position = file.read(end - start).rfind(b"\n")
                if position >= 0:
                    end = start + position + 1
                    break
                end = start
        self._file.truncate(end)

    def append(self, sample: Sample) -> None:
        assert self._file is not None
        line = {key: value for key, value in asdict(sample).items() if value is not None or key in ("answer", "finish")}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise EvalError(f"{self.folder / SAMPLES} cannot be written to: {words(error)}") from error

    def save_settings(self) -> None:
        replace_text(self.folder / SETTINGS, json.dumps(self.settings, indent=1, sort_keys=True) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            self.save_settings()
