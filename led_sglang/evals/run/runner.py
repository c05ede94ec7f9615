"""Requests, grades and stores every sample of a run; methods take turns, so that all meet the same server load."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from led_sglang.cli import files
from led_sglang.cli.endings import CommandError, write_stderr
from led_sglang.evals.answers.text import final_text
from led_sglang.evals.errors import EvalError, NotApplied
from led_sglang.evals.grade import sandbox
from led_sglang.evals.grade.dispatch import Marking, check_installed
from led_sglang.evals.grade.graders import REFUSED, TIMED_OUT, Verdict
from led_sglang.evals.grade.judge import Judges
from led_sglang.evals.methods import Method
from led_sglang.evals.prompts import PromptStyle
from led_sglang.evals.records.results import Cell, Cells, read_runs
from led_sglang.evals.records.store import CellKey, Sample, Store, holds_run, read_settings
from led_sglang.evals.run import outcome
from led_sglang.evals.run.client import Answer, Client, Query, Refused
from led_sglang.evals.run.progress import LiveTable
from led_sglang.evals.tasks import Question, Task, fingerprint, max_tokens

__all__ = ["Runner", "Settings"]


@dataclass(frozen=True)
class Settings:
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    temperatures: tuple[float, ...]
    samples: int
    out: Path
    base_url: str
    api_key: str | None = None
    model: str | None = None
    seed: int = 0
    concurrency: int = 32
    timeout_s: float = 3600.0
    judge_timeout_s: float = 20.0
    judges: int = 2
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    resume: bool = False
    keep_text: bool = True
    is_quiet: bool = False
    prompts: PromptStyle = "ours"  # of the questions that are given to the Runner

    def sampling(self, task: Task) -> dict[str, Any]:
        given = {"top_p": self.top_p, "top_k": self.top_k}
        return {**task.sampling, **{key: value for key, value in given.items() if value is not None}}

    def max_tokens_of(self, task: Task, model: str) -> int:
        return self.max_tokens or max_tokens(task, model)


@dataclass(frozen=True)
class Job:
    task: Task
    question: Question
    method: Method
    temperature: float
    sample: int

    @property
    def cell(self) -> CellKey:
        return CellKey(self.task.name, self.method.name, self.temperature)


def seed_of(seed: int, question: str, sample: int) -> int:
    """Of one sample; the same for every method, and for a run that was continued."""
    digest = hashlib.sha256(json.dumps([seed, question, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Runner:
    def __init__(self, settings: Settings, questions: dict[str, list[Question]]) -> None:
        self.settings = settings
        self.questions = questions
        self.applied: dict[str, dict[str, Any]] = {}
        self.done: Cells = {}
        self.reasons = outcome.Reasons()
        self.slots = asyncio.Semaphore(settings.concurrency)

    def jobs(self) -> Iterator[Job]:
        settings = self.settings
        for task in settings.tasks:
            for sample in range(settings.samples):
                for question in self.questions[task.name]:
                    for temperature in settings.temperatures:
                        for method in settings.methods:
                            job = Job(task, question, method, temperature, sample)
                            cell = self.done.get(job.cell)
                            if cell is None or not cell.has(question.id, sample):
                                yield job

    def num_expected(self) -> dict[CellKey, int]:
        """Samples of each cell."""
        settings = self.settings
        return {
            CellKey(task.name, method.name, temperature): settings.samples * len(self.questions[task.name])
            for task in settings.tasks
            for temperature in settings.temperatures
            for method in settings.methods
        }

    def record(self, model: str) -> dict[str, Any]:
        """The content of `run.json`; `fixed` may not change when the run is continued."""
        settings = self.settings
        fixed: dict[str, Any] = {"model": model, "seed": settings.seed}
        for task in settings.tasks:
            fixed[f"sampling of {task.name}"] = {
                **settings.sampling(task),
                "max_tokens": settings.max_tokens_of(task, model),
            }
        return {
            "fixed": fixed,
            "prompts": settings.prompts,
            "questions": {task.name: fingerprint(self.questions[task.name]) for task in settings.tasks},
            "num_questions": {task.name: len(self.questions[task.name]) for task in settings.tasks},
            "methods": [method.name for method in settings.methods],
            "temperatures": list(settings.temperatures),
            "samples": settings.samples,
            "sessions": [],
        }

    def check(self) -> None:
        """What can be known before the first request. Raises CommandError."""
        settings = self.settings
        check_installed({task.grader for task in settings.tasks})
        files.check_folder(settings.out)
        if settings.resume and holds_run(settings.out):
            read_settings(settings.out)
            read_runs([settings.out])

    async def run(self) -> tuple[str, bool]:
        """The message at the end, and whether every request was answered (`outcome.message`).

        Raises CommandError; whatever was graded by then is stored.
        """
        settings = self.settings
        self.check()
        client = Client(settings.base_url, settings.api_key, settings.model, settings.timeout_s, settings.concurrency)
        async with client:
            record = self.record(await client.find_model())
            await self.check_methods(client)
            record["applied"] = self.applied
            record["server"] = await self.versions(client)
            if any(task.grader == "code" for task in settings.tasks):
                record["sandbox"] = await asyncio.to_thread(sandbox.describe)
            with (
                Store(settings.out, record, settings.resume) as store,
                LiveTable(self.num_expected(), settings.is_quiet) as live,
            ):
                self.done = read_runs([settings.out])
                for cell in self.done.values():
                    live.show(cell)
                await self.work(client, store, live)
        return outcome.message((self.done[key] for key in self.num_expected() if key in self.done), self.reasons)

    async def versions(self, client: Client) -> dict[str, Any]:
        """Of the server, for the record: a run is worth its hours without them too, but not in silence."""
        try:
            found = (await client.led_info()).get("versions")
        except CommandError as error:
            write_stderr(f"evals: the run is without its server's versions: {error}")
            return {}
        return found if isinstance(found, dict) else {}

    async def check_methods(self, client: Client) -> None:
        """One token of each method, so that a server without one of them fails before the run."""
        for method in self.settings.methods:
            task = self.settings.tasks[0]
            prompt = self.questions[task.name][0].prompt
            requested = Query(prompt, method, self.settings.temperatures[0], 0, 1, self.settings.sampling(task))
            try:
                self.applied[method.name] = (await client.ask(requested)).applied
            except (Refused, TimeoutError) as error:
                raise EvalError(f"the server does not take method {method.name}: {error}") from error

    async def work(self, client: Client, store: Store, live: LiveTable) -> None:
        session: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "wall_s": 0.0}
        store.settings["sessions"].append(session)
        started, jobs = time.monotonic(), self.jobs()
        # More workers than slots: while some wait for a judge, the server is still kept busy.
        count = self.settings.concurrency + self.settings.judges
        try:
            async with (
                Judges(self.settings.judges, self.settings.judge_timeout_s) as judges,
                asyncio.TaskGroup() as group,
            ):
                marking = Marking(judges, self.settings.judges)
                for _ in range(count):
                    group.create_task(self.worker(jobs, client, marking, store, live))
        except* (CommandError, OSError) as errors:
            raise _first_of(errors) from None
        finally:
            session["wall_s"] = round(time.monotonic() - started, 3)

    async def worker(
        self, jobs: Iterator[Job], client: Client, marking: Marking, store: Store, live: LiveTable
    ) -> None:
        for job in jobs:
            sample = await self.one(job, client, marking)
            store.append(sample)
            cell = self.done.setdefault(sample.cell, Cell(sample.cell))
            cell.add(sample)
            self.reasons.add(sample)
            live.show(cell)

    async def one(self, job: Job, client: Client, marking: Marking) -> Sample:
        settings, task = self.settings, job.task
        seed = seed_of(settings.seed, job.question.id, job.sample)
        requested = Query(
            job.question.prompt,
            job.method,
            job.temperature,
            seed,
            settings.max_tokens_of(task, client.model),
            settings.sampling(task),
        )
        answer = Answer("", "", None, 0, 0, 0.0, {})
        try:
            async with self.slots:
                answer = await client.ask(requested)
        except Refused as error:
            verdict = Verdict(REFUSED, detail=str(error))
        except TimeoutError:
            verdict = Verdict(TIMED_OUT, detail=f"no answer in {settings.timeout_s:g} s")
        else:
            if answer.applied != self.applied[job.method.name]:
                before = self.applied[job.method.name]
                raise NotApplied(
                    f"{job.method.name}: applied was {before} at the start of this run, is {answer.applied}"
                )
            verdict = await self.grade(job, answer, marking)
        return Sample(
            task=task.name,
            method=job.method.name,
            temperature=job.temperature,
            question=job.question.id,
            sample=job.sample,
            seed=seed,
            outcome=verdict.outcome,
            answer=verdict.answer if settings.keep_text or task.grader != "code" else None,  # of code: the program
            detail=verdict.detail,
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
            finish=answer.finish,
            wall_s=round(answer.wall_s, 4),
            text=answer.content if settings.keep_text else None,
            reasoning=(answer.reasoning or None) if settings.keep_text else None,
            led=answer.applied,
        )

    async def grade(self, job: Job, answer: Answer, marking: Marking) -> Verdict:
        text = final_text(answer.content, answer.reasoning, answer.finish, job.task.thinking)
        return await marking.grade(job.task.grader, text, job.question.gold)


def _first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
