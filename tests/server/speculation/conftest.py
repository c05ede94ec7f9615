"""Answers without speculation, and the drafts of servers that speculate."""

from functools import cache
from pathlib import Path

import pytest

from led_sglang.embedded import draft
from led_sglang.testing import Reply
from tests.server import checkpoints, drafts
from tests.server.clients import Client
from tests.server.servers import Server
from tests.server.speculation.cases import DETERMINISTIC, NUM_REQUESTS, Case, requests, threads_of

NUM_KNOWN = 4  # texts that the layer of multi-token prediction knows by heart


class Makers:
    """Make what a case needs when it asks: its model, its draft, and the answers of its twin without speculation.

    Models of random weights have the embedded model's tokenizer, and serve the same requests.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs
        self.model = cache(self._model)
        self.draft = cache(self._draft)
        self._answers = cache(self._answers_of)

    def expected(self, case: Case) -> list[Reply]:
        """Of a server that decodes one token a step."""
        return self._answers(case.architecture, case.served)

    def arguments(self, case: Case) -> tuple[str, ...]:
        """Of the server that speculates."""
        return *self.served(case.architecture), *case.served, *self.speculation(case)

    def speculation(self, case: Case) -> tuple[str, ...]:
        model = () if case.draft is None else ("--speculative-draft-model-path", str(self.draft(case.draft)))
        return "--speculative-algorithm", case.algorithm, *case.arguments, *model

    def served(self, architecture: str | None) -> tuple[str, ...]:
        if architecture is None:
            return DETERMINISTIC
        model = ("--model-path", str(self.model(architecture)), "--dtype", "float32", "--trust-remote-code")
        return (*model, "--context-length", "2048", "--led-max-depth", "12", *DETERMINISTIC)

    def _model(self, architecture: str) -> Path:
        return checkpoints.build(architecture, self.folder / architecture)

    def _answers_of(self, architecture: str | None, served: tuple[str, ...]) -> list[Reply]:
        log = self.logs / f"one_token {architecture} {' '.join(served)}.log"
        with Server(*self.served(architecture), *served, log=log, environment=threads_of(served)) as server:
            return all_replies(Client(server.url))

    def _draft(self, name: str) -> Path:
        if name == "nextn":
            known = [reply.request.prompt_ids + reply.output_ids for reply in self._answers("mimo", ())]
            return drafts.add_mimo_mtp(self.model("mimo"), known[:NUM_KNOWN])
        makers = {"draft": draft.save, "eagle": drafts.eagle_head, "eagle3": drafts.eagle3_head}
        return makers[name](self.folder / name)


def all_replies(client: Client, concurrency: int = 20) -> list[Reply]:
    made, replies = requests(), []
    for start in range(0, NUM_REQUESTS, concurrency):
        replies += client.together(made[start : start + concurrency])
    return replies


@pytest.fixture(scope="package")
def makers(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Makers:
    return Makers(tmp_path_factory.mktemp("speculation"), logs)
