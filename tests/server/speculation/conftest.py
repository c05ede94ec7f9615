"""Answers without speculation, and the drafts of servers that speculate."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from led_sglang.embedded import draft
from led_sglang.testing import Reply
from tests.server import drafts
from tests.server.clients import Client
from tests.server.servers import Server
from tests.server.speculation.cases import DETERMINISTIC, NUM_REQUESTS, requests


@pytest.fixture(scope="package")
def expected(logs: Path) -> list[Reply]:
    """Of a server that decodes one token a step."""
    with Server(*DETERMINISTIC, log=logs / "one_token.log") as server:
        return all_replies(Client(server.url))


def all_replies(client: Client, concurrency: int = 20) -> list[Reply]:
    made, replies = requests(), []
    for start in range(0, NUM_REQUESTS, concurrency):
        replies += client.together(made[start : start + concurrency])
    return replies


@pytest.fixture(scope="session")
def draft_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Drafts for the embedded model by name, made when they are asked for."""
    folder = tmp_path_factory.mktemp("drafts")
    makers = {"draft": draft.save, "eagle": drafts.eagle_head, "eagle3": drafts.eagle3_head}

    @cache
    def find(name: str) -> Path:
        return makers[name](folder / name)

    return find
