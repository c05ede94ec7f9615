"""After a fault of ours the engine's outcome stands, the thinking states follow it, and the record says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from led_sglang.integration.faults import RankDivergence
from led_sglang.integration.scheduler.ranks import RankCheck
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.speculation import draws, nodes, outcome, verify
from led_sglang.integration.scheduler.step import decision
from led_sglang.wire import ACTIVE, FALLBACK, WIRE_KEY
from tests.unit.integration.scheduler.speculation import world
from tests.unit.integration.scheduler.speculation.world import BACKENDS, CPU, Server

Serve = Callable[..., Server]
NO_DECISION: dict[str, tuple[Any, str]] = {  # LED's tokens are not there
    "begin": (nodes.VerifyInputs, "begin"),
    "nodes": (nodes.NodeRows, "of"),
    "decide": (verify, "decide"),
    "step": (verify, "_led_step"),
    "ops": (decision, "led_step"),
    "edits": (verify, "edits_of"),
    "draw": (verify, "draw_seeded"),
    "one draw": (draws, "_draw"),
    "apply": (outcome.Verdict, "apply"),
    "walk": (outcome.Verdict, "_walk"),
    "the hook": (verify, "_verify"),
}
DECIDED: dict[str, tuple[Any, str]] = {  # LED's tokens stand
    "advance": (verify, "_advance"),
    "rows of requests": (nodes.VerifyInputs, "of_requests"),
    "record": (records.StepRecord, "of_verify"),
}
FAULTS = NO_DECISION | DECIDED


def break_once(patch: pytest.MonkeyPatch, fault: str, times: int = 1) -> None:
    owner, name = FAULTS[fault]
    left, bound = [None] * times, getattr(owner, name)
    is_bound = isinstance(vars(owner)[name], classmethod)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()
            raise ArithmeticError("on purpose")
        return bound(*args, **kwargs)

    patch.setattr(owner, name, staticmethod(fail) if is_bound else fail)


def step(server: Server, has_failed: bool) -> list[list[int]]:
    """A verification; entries of its tokens by request."""
    verified = server.verify()
    server.check(verified, has_failed)
    before = [len(request.entries) for request in server.requests]
    server.give_out(verified)
    server.check_reports()
    pairs = zip(server.requests, before, strict=True)
    return [[e if isinstance(e, int) else e[0] for e in request.entries[start:]] for request, start in pairs]


@pytest.mark.parametrize("backend", ["numba", "fixed shapes"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_verification(fault: str, backend: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(world.requests(), BACKENDS[backend])
    break_once(monkeypatch, fault)
    expected = [request.text for request in server.requests]
    entries = step(server, has_failed=fault in NO_DECISION)
    assert server.runtime.num_step_failures == 1
    for request, text, flags in zip(server.requests, expected, entries, strict=True):
        for i, flag in enumerate(flags):
            known = server.oracle(request, text + request.output_ids[:i])
            if not request.is_ours:
                assert flag == 0
            elif fault == "record":
                assert flag == FALLBACK
            elif fault in NO_DECISION:
                assert bool(flag & FALLBACK) == bool(known.flags & ACTIVE) == bool(flag & ACTIVE)
            else:
                assert flag == known.flags
    status = server.runtime.counts.status()
    assert (status["fallbacks"] > 0) == (fault not in ("advance", "rows of requests"))
    for _ in range(4):
        step(server, has_failed=False)
    assert server.runtime.num_step_failures == 1
    assert server.runtime.counts.status()["fallbacks"] == status["fallbacks"]


@pytest.mark.parametrize("fault", [name for name in NO_DECISION if name not in ("begin", "nodes", "the hook")])
def test_a_fault_of_every_verification(fault: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(world.requests(), BACKENDS["numba"], seed=1)
    with monkeypatch.context() as patch:
        break_once(patch, fault, times=10**6)
        for _ in range(5):
            step(server, has_failed=True)
    assert server.runtime.num_step_failures == 5
    for _ in range(3):
        step(server, has_failed=False)


def test_a_forward_that_failed_is_the_engines(serve: Serve) -> None:
    """Its latents may not be there."""
    server = serve(world.requests(), BACKENDS["numba"])
    server.has_forward_failed = True
    for flags in step(server, has_failed=True):
        assert all(bool(flag & FALLBACK) == bool(flag & ACTIVE) for flag in flags)
    assert server.runtime.num_step_failures == 0, "it is counted where it failed"
    server.has_forward_failed = False
    step(server, has_failed=False)


def test_a_record_that_was_lost_takes_no_entries_from_the_next(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where more than one token was accepted."""
    server = serve(world.requests(), BACKENDS["numba"], seed=5)
    break_once(monkeypatch, "record")
    lengths = [len(flags) for flags in step(server, has_failed=False)]
    step(server, has_failed=False)
    assert max(lengths) > 1
    for request, length in zip(server.requests, lengths, strict=True):
        if not request.is_ours:
            continue
        entries = (request.customized_info or {})[WIRE_KEY]
        for i, entry in enumerate(entries[length:], length):
            flags = entry if isinstance(entry, int) else entry[0]
            assert flags == server.oracle(request, request.prompt + request.output_ids[:i]).flags


def test_ranks_that_differ_stop_the_server(serve: Serve) -> None:
    server = serve(world.requests(), BACKENDS["numba"])
    server.runtime.ranks = RankCheck(lambda digest: torch.stack([digest, digest + 1]), 1000, CPU)
    with pytest.raises(RankDivergence):
        server.verify()


def test_every_rank_takes_the_first_ranks_tokens(serve: Serve) -> None:
    """Of every node, before the path is chosen; this rank's own stay in its digest."""
    tokens: list[torch.Tensor] = []

    def ranks(broadcast: Any) -> RankCheck:
        return RankCheck(lambda digest: torch.stack([digest, digest]), 1000, CPU, broadcast)

    first = serve(world.requests(), BACKENDS["numba"], seed=2)
    first.runtime.ranks = ranks(lambda token_ids: (tokens.append(token_ids.clone()), token_ids)[1])
    verified = first.verify()
    first.check(verified)
    other = serve(world.requests(), BACKENDS["numba"], seed=2)
    other.runtime.ranks = ranks(lambda token_ids: tokens[0])
    draw = verify.draw_seeded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "draw_seeded", lambda *args: (draw(*args) + 1) % 20)
        found = other.verify()
    assert all(torch.equal(one, two) for one, two in zip(found.found, verified.found, strict=True))
    assert torch.equal(other.runtime.states, first.runtime.states)
    assert not torch.equal(other.runtime.ranks._digest, first.runtime.ranks._digest)
