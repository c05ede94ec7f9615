"""What both files of faults need: requests, bystanders of a fault, and what has to hold of their answers.

The module's own fixture `faulty` is the server.
"""

from pathlib import Path

import pytest

from benchmarks.soak.oracle import thinking_flags
from led_sglang.testing import Reply
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Request, thinking_prompt
from tests.server.recompute import Query
from tests.server.servers import Server

# The phase opens and closes all the time: a state that is lost in a failed step is wrong in the next ones.
FLICKERING = Query(temperature=1.0, logit_bias={OPEN_ID: 19.0, CLOSE_ID: 19.0})
REFERENCE = Request(thinking_prompt(10), Query(temperature=1.0), num_tokens=24, seed=5)
OFF = Request(thinking_prompt(11), Query(temperature=0.0), num_tokens=24, seed=None, led=False)


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says which hook fails."""
    file = tmp_path_factory.mktemp("switch") / "fault.json"
    file.write_text("{}")
    return file


@pytest.fixture(scope="module")
def client(faulty: Server) -> Client:
    return Client(faulty.url)


@pytest.fixture(scope="module")
def alone(client: Client) -> tuple[Reply, Reply]:
    """Two bystanders as they are answered when nothing goes wrong."""
    return client.generate(REFERENCE), client.generate(OFF)


def failures(client: Client) -> int:
    return int(client.get("/led/info")["counters"]["step_failures"])


def check_states(reply: Reply) -> int:
    """The flags follow the markers, but in steps that could not tell; returns how many those were."""
    expected = thinking_flags(reply.request.prompt_ids, reply.output_ids, [OPEN_ID], [CLOSE_ID])
    reported, decided = reply.meta["led_think"], reply.meta["led_depth"]
    assert len(reported) == len(expected) == reply.request.num_tokens
    wrong = [i for i, (flag, right) in enumerate(zip(reported, expected, strict=True)) if flag != right]
    assert all(not reported[i] and decided[i] is None for i in wrong), (wrong, reported, expected)
    return len(wrong)


def num_faults(client: Client) -> int:
    """Counted in either process."""
    counters = client.get("/led/info")["counters"]
    return int(counters["step_failures"] + counters["report_failures"])


def check_bystanders(client: Client, alone: tuple[Reply, Reply]) -> Reply:
    """They are answered as ever; returns the one with LED."""
    reference, off = client.together([REFERENCE, OFF])
    assert reference.output_ids == alone[0].output_ids and off.output_ids == alone[1].output_ids
    assert check_states(reference) == reference.meta["led_stats"]["fallbacks"] == 0
    return reference
