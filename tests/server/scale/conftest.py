"""What one server on one rank answers: every topology is held against it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from led_sglang.testing import Reply
from tests.server import checkpoints
from tests.server.clients import Client, Oracle, sharp_server
from tests.server.scale.cases import CHECKPOINT, LIMITS, alone, together


@dataclass(frozen=True)
class Expected:
    """The texts of `ask` on one server, and what recomputes them."""

    folder: Path
    texts: list[list[int]]
    oracle: Oracle


@pytest.fixture(scope="package")
def expected(checkpoint_folder: Path, logs: Path) -> Expected:
    folder = checkpoints.build(CHECKPOINT, checkpoint_folder / CHECKPOINT)
    with sharp_server(folder, logs / "scale_single.log", *LIMITS) as server:
        replies = ask(Client(server.url))
    return Expected(folder, [reply.output_ids for reply in replies], Oracle(folder))


def ask(client: Client) -> list[Reply]:
    return [*client.together(together()), client.generate(alone())]
