"""The tasks: where their questions come from, their prompts, and their graders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from led_sglang.cli import files
from led_sglang.evals import readers
from led_sglang.evals.answers.text import Thinking
from led_sglang.evals.errors import EvalError
from led_sglang.evals.prompts import PromptKind, PromptStyle, write_prompt

__all__ = ["TASKS", "Question", "Task", "find_tasks", "fingerprint", "load", "max_tokens"]

WHOLE_DISTRIBUTION = {"top_p": 1.0, "top_k": -1}


@dataclass(frozen=True)
class Question:
    id: str
    prompt: str
    gold: str  # of code tasks: the tests as JSON


@dataclass(frozen=True)
class Hub:
    """Where the data set lies on the hub; `files` for one that is read as raw JSONL."""

    name: str
    split: str = "test"
    subset: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    name: str
    grader: str  # number | countdown | math | choice | code
    prompt: PromptKind
    hub: Hub | None = None
    thinking: Thinking = "auto"
    max_tokens: int = 32_768
    sampling: dict[str, Any] = field(default_factory=lambda: {"top_p": 0.95, "top_k": 20})
    default_limit: int | None = None


TASKS = {
    task.name: task
    for task in (
        # The embedded models' tasks are drawn from a seed; the whole distribution is sampled, as in their training.
        Task("embedded", "number", "plain", None, "required", 256, WHOLE_DISTRIBUTION, default_limit=500),
        Task("countdown", "countdown", "plain", None, "required", 256, WHOLE_DISTRIBUTION, default_limit=500),
        Task("gsm8k", "number", "boxed", Hub("openai/gsm8k", subset="main")),
        Task("math500", "math", "boxed", Hub("HuggingFaceH4/MATH-500")),
        Task("aime2024", "math", "boxed", Hub("HuggingFaceH4/aime_2024", split="train")),
        Task("aime2025", "math", "boxed", Hub("math-ai/aime25")),
        Task("humaneval", "code", "function", Hub("openai/openai_humaneval")),
        Task("gpqa_diamond", "choice", "choice", Hub("Idavidrein/gpqa", split="train", subset="gpqa_diamond")),
        Task(
            "livecodebench",
            "code",
            "code",
            Hub("livecodebench/code_generation_lite", files=tuple(f"test{i}.jsonl" for i in ("", 2, 3, 4, 5))),
        ),
    )
}


# As in the released evaluation: a context of 32k less a prompt of up to 4k.
MODEL_MAX_TOKENS = {"mimo-7b-rl": 28 * 1024}


def max_tokens(task: Task, model: str) -> int:
    """Of one answer, for a model by its served name or path."""
    limit = MODEL_MAX_TOKENS.get(model.rstrip("/").rpartition("/")[2].lower(), task.max_tokens)
    return min(limit, task.max_tokens)


def find_tasks(text: str) -> list[Task]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in TASKS]):
        raise EvalError(
            f"--task: unknown task {', '.join(unknown) if names else '(none given)'}; known: {', '.join(TASKS)}"
        )
    return [TASKS[name] for name in dict.fromkeys(names)]


def load(task: Task, data: Path | None, limit: int | None, seed: int, prompts: PromptStyle = "ours") -> list[Question]:
    """The task's questions, in their source's order. Raises CommandError where it is missing or one is unusable."""
    limit = limit if limit is not None else task.default_limit
    if task.hub is None:
        rows: Iterator[tuple[str, dict[str, Any]]] = _drawn(task.name, limit or 500, seed)
    elif data is not None:
        rows = readers.local_rows(data / f"{task.name}.jsonl")
    else:
        rows = readers.hub_rows(task.hub.name, task.hub.split, task.hub.subset, task.hub.files)
    questions: dict[str, Question] = {}
    first_seen: dict[str, str] = {}
    for where, row in rows:
        if limit is not None and len(questions) >= limit:
            break
        if task.grader == "code" and not readers.is_in_window(row):
            continue
        question = _question(task, where, row, len(questions), prompts)
        if question.id in questions:
            raise EvalError(f"{where}: the id {question.id!r} comes twice, first in {first_seen[question.id]}")
        questions[question.id], first_seen[question.id] = question, where
    if not questions:
        source = data / f"{task.name}.jsonl" if data is not None else task.hub
        raise EvalError(f"{task.name}: no questions in {source}")
    return list(questions.values())


def _drawn(name: str, count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    from led_sglang.embedded import countdown, problems

    rows: Iterator[dict[str, Any]]
    if name == "countdown":
        rows = (
            {"problem": drawn.question, "numbers": drawn.numbers, "target": drawn.target}
            for drawn in countdown.generate("held_out", count, seed)
        )
    else:
        rows = (
            {"problem": drawn.question, "expected_answer": str(drawn.answer)}
            for drawn in problems.generate("held_out", count, seed)
        )
    for index, row in enumerate(rows):
        yield f"{name} problem {index}", {"id": f"{name}-{seed}-{index}", **row}


def _question(task: Task, where: str, row: dict[str, Any], index: int, prompts: PromptStyle) -> Question:
    try:
        slots, gold = readers.SHAPES[task.grader](row)
        question_id = readers.question_id(row) or f"{task.name}-{index}"
    except readers.UnusableRow as error:
        raise EvalError(f"{where}: {error}") from error
    prompt = write_prompt(prompts, task.prompt, slots)
    return Question(*(files.whole_text(text, where) for text in (question_id, prompt, gold)))


def fingerprint(questions: list[Question]) -> str:
    """Hash of questions and right answers: a run is only continued on the same questions."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps([question.id, question.prompt, question.gold]).encode())
    return digest.hexdigest()[:16]
