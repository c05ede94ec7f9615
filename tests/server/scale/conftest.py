"""What one server on one rank answers: every topology is held against it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from led_sglang.testing import Reply
from tests.server import checkpoints
from tests.server.clients import Client, Oracle, sharp_server
from tests.server.scale.cases import CHECKPOINT, LIMITS, alone, several, together


@dataclass(frozen=True)
class Expected:
    """The texts of `ask` on one server, those of three samples of a request, and what recomputes them."""

    folder: Path
    texts: list[list[int]]
    samples: list[list[int]]
    oracle: Oracle


@pytest.fixture(scope="package")
def expected(checkpoint_folder: Path, logs: Path) -> Expected:
    folder = checkpoints.build(CHECKPOINT, checkpoint_folder / CHECKPOINT)
    with sharp_server(folder, logs / "scale_single.log", *LIMITS) as server:
        client = Client(server.url)
        replies, samples = ask(client), client.samples(several(), 3)
    texts = ([reply.output_ids for reply in answers] for answers in (replies, samples))
    return Expected(folder, *texts, Oracle(folder))


def ask(client: Client) -> list[Reply]:
    return [*client.together(together()), client.generate(alone())]
