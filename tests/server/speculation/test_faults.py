"""What goes wrong in a verification stays there: the engine's outcome stands, and the thinking states follow it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from led_sglang.testing import Reply
from tests.server import fault_plugin
from tests.server.bystanders import (  # three of them fixtures, here of this file's server
    FLICKERING,
    OFF,
    REFERENCE,
    alone,
    check_bystanders,
    check_states,
    client,
    failures,
    num_faults,
    switch,
)
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Request, sharp_server, thinking_prompt
from tests.server.fault_plugin import IN_VERIFY, LATENTS, LOGITS, RAISING_IN_VERIFY, SEEDS
from tests.server.recompute import Query
from tests.server.servers import Server
from tests.server.speculation.cases import shape

__all__ = ["alone", "client", "switch"]
pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def faulty(qwen3_folder: Path, logs: Path, switch: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The model drafts for itself: every greedy draft is right where LED exploits."""
    environment = fault_plugin.install(tmp_path_factory.mktemp("plugin"))
    environment |= {fault_plugin.SWITCH: str(switch), "SGLANG_SANITIZE_NAN_LOGITS": "1"}
    draft = ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(qwen3_folder))
    arguments = (*draft, *shape(3, 2, 6), "--max-total-tokens", "8192")
    with sharp_server(qwen3_folder, logs / "verify_faults.log", *arguments, environment=environment) as server:
        yield server


@pytest.mark.parametrize("fault", RAISING_IN_VERIFY)
def test_an_exception_in_a_verification(fault: str, client: Client, alone: tuple[Reply, Reply]) -> None:
    before = failures(client)
    counters = client.get("/led/info")["counters"]
    request = Request(thinking_prompt(20), FLICKERING, num_tokens=48, seed=SEEDS[fault], return_logprob=True)
    reply, off = client.together([request, OFF])
    stats = reply.meta["led_stats"]
    assert failures(client) - before >= 6, "every second verification should have failed"
    if (
        fault != "states of a verification"
    ):  # by then the tokens are LED's, and the states are moved in a second attempt
        assert stats["fallbacks"] > 0
    assert check_states(reply) <= stats["fallbacks"]
    assert off.output_ids == alone[1].output_ids
    after = client.get("/led/info")["counters"]
    for key in ("led_tokens", "fallbacks", "explored_tokens"):
        assert after[key] - counters[key] == stats[key], key
    assert after["report_failures"] == counters["report_failures"]
    check_bystanders(client, alone)


@pytest.mark.parametrize("fault", [*LOGITS, *LATENTS])
def test_numbers_that_are_none(fault: str, client: Client, alone: tuple[Reply, Reply]) -> None:
    query = Query(temperature=1.0, exploit=fault not in LATENTS)
    request = Request(thinking_prompt(21), query, num_tokens=16, seed=SEEDS[fault])
    reply, reference, off = client.together([request, REFERENCE, OFF])
    stats = reply.meta["led_stats"]
    assert len(reply.output_ids) == 16
    assert (stats["fallbacks"] > 0) == (fault != "one nan logit"), stats
    assert check_states(reply) <= stats["fallbacks"]
    assert reference.output_ids == alone[0].output_ids and off.output_ids == alone[1].output_ids


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("target", IN_VERIFY)
def test_a_fault_in_the_hook(target: str, when: str, switch: Path, client: Client, alone: tuple[Reply, Reply]) -> None:
    before = num_faults(client)
    requests = [replace(REFERENCE, seed=i, num_tokens=40, query=FLICKERING) for i in range(3)]
    try:
        switch.write_text(json.dumps({"target": target, "when": when}))
        replies = client.together([*requests, OFF])
    finally:
        switch.write_text("{}")
    assert num_faults(client) > before
    assert replies[-1].output_ids == alone[1].output_ids
    for reply in replies[:-1]:
        assert len(reply.output_ids) == 40
        assert {OPEN_ID, CLOSE_ID} & set(reply.output_ids)
    check_bystanders(client, alone)
