"""Nodes as token rows: what each asks for is what its request asks for, in any company."""

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.config.methods import METHODS
from led_sglang.integration.scheduler.speculation import verify
from led_sglang.integration.scheduler.speculation.nodes import NodeRows, VerifyInputs
from led_sglang.integration.scheduler.step import decision
from led_sglang.ops import LedRows, uniforms
from tests.unit.integration.scheduler.speculation.world import (
    AUTOMATON,
    BACKENDS,
    DEPTH,
    Request,
    Server,
    V,
    info_of,
)

Serve = Callable[..., Server]
TABLE = torch.ones(V)
COMPANIES = {
    "alone": [Request(seed=4)],
    "all LED": [
        Request(seed=4),
        Request(seed=5, temperature=0.3, is_seeded=False),
        Request(seed=6, edits=(TABLE, None, None)),
    ],
    "mixed": [
        Request(method=None),
        Request(seed=5, params={"phase": "all", "depth": 2}),
        Request(method="none", edits=(TABLE, None, None)),
        Request(method="dola", seed=6, edits=(TABLE, None, None)),
        Request(seed=7, edits=(None, None, TABLE), temperature=0.0, is_seeded=False),
        Request(seed=8, params={"top_k": 3, "trace": True, "exploit": False}),
        Request(method="none"),
    ],
}


@pytest.mark.parametrize("num_nodes", [1, 2, 5])
@pytest.mark.parametrize("company", COMPANIES)
def test_rows_of_nodes(company: str, num_nodes: int) -> None:
    requests = COMPANIES[company]
    info = info_of(requests)
    rows = info.led.device_rows(info)
    nodes = NodeRows.of(info.led, rows, num_nodes)
    assert nodes.meta.index is None, "all rows of the batch"
    assert nodes.is_ours.tolist() == [request.is_ours for request in requests]
    position = {b: i for i, b in enumerate(info.led.our_rows)}
    seeded, edited = [], []
    columns = [field.name for field in fields(LedRows) if isinstance(getattr(rows.params, field.name), torch.Tensor)]
    for b, request in enumerate(requests):
        for node in range(num_nodes):
            t = b * num_nodes + node
            assert nodes.request_idx[t] == b
            is_led = nodes.meta.is_led is None or bool(nodes.meta.is_led[t])
            assert is_led == (request.method == "led")
            if not request.is_ours:
                continue
            assert nodes.meta.seed[t] == request.seed and nodes.meta.sample[t] == 3
            assert METHODS[nodes.method[t]] == request.method
            assert bool(nodes.meta.phase_all[t]) == (request.params.get("phase") == "all")
            for name in columns:
                assert getattr(nodes.params, name)[t] == getattr(rows.params, name)[position[b]], name
            seeded += [t] if request.is_seeded else []
            edited += [t] if request.row.is_edited and request.method == "led" else []
    assert ([] if nodes.seeded is None else nodes.seeded.tolist()) == seeded
    assert ([] if nodes.edited is None else nodes.edited.tolist()) == edited


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nodes_start_from(backend: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """States from the root's on, noise of each node's own position, phase; the requests' rows keep their slots."""
    made: list[VerifyInputs] = []
    keep = verify.decide
    monkeypatch.setattr(verify, "decide", lambda inputs, *rest: (made.append(inputs), keep(inputs, *rest))[1])
    requests = [Request(method=None), *(Request(seed=i, params={"phase": "all"} if i % 3 else {}) for i in range(5))]
    server = serve([*requests, Request(method="none")], BACKENDS[backend])
    for num_nodes in (7, 5, 7, 1):  # adaptive speculation changes it between steps
        server.num_nodes = num_nodes
        verified = server.verify()
        server.check(verified)
        inputs = made.pop()
        assert inputs.tree.states.shape[1] == num_nodes and torch.equal(inputs.slots, server.slots)
        last = torch.arange(len(server.requests)) * num_nodes + (num_nodes - 1) // 2
        picked = inputs.of_requests(last)
        ours = list(server.info.led.our_rows)
        assert torch.equal(picked.slots, server.slots[ours])
        for b, (request, tree) in enumerate(zip(server.requests, verified.trees, strict=True)):
            for node in range(num_nodes):
                t, text = b * num_nodes + node, server.text_at(request, tree, node)
                thinking = AUTOMATON.thinking(AUTOMATON.run(text))
                if request.is_ours and (node == 0 or tree.parents[node] >= 0):
                    assert inputs.tree.states[b, node] == AUTOMATON.run(text)
                    assert bool(inputs.active[t]) == (thinking or request.params.get("phase") == "all")
                    assert bool(inputs.row_inputs.thinking[t]) == thinking
                if not request.is_ours:
                    assert not inputs.active[t]
                    continue
                columns = torch.tensor([request.seed]), torch.tensor([3]), torch.tensor([len(text) - 1])
                noise = torch.stack([inputs.row_inputs.coin_uniform[t], inputs.row_inputs.token_uniform[t]])
                assert torch.equal(noise, uniforms(*columns)[:, 0])
        for name in ("states", "thinking", "positions", "active", "coin_uniform", "token_uniform"):
            assert torch.equal(getattr(picked, name), getattr(inputs.row_inputs, name)[last[ours]]), name
        server.give_out(verified)
    assert {name for name in server.info.led._cache if name != "rows"} == {"nodes 7", "nodes 5", "nodes 1"}


def test_edited_nodes_have_the_tables_of_their_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    step = decision.led_step
    monkeypatch.setattr(decision, "led_step", lambda *args, **kw: (seen.append(kw["edits"]), step(*args, **kw))[1])
    requests = [Request(method=None), Request(seed=1, edits=(TABLE, None, TABLE)), Request(seed=2)]
    server = serve(requests, BACKENDS["numba"], num_nodes=3)
    server.verify()
    [edits] = seen
    assert edits.rows.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and edits.edited.tolist() == [3, 4, 5]
    assert edits.additive is server.info.acc_additive_penalties and edits.bias is server.info.logit_bias
    plain = serve([Request(seed=2)], BACKENDS["numba"])
    plain.verify()
    assert seen[1:] == [None]


def test_nodes_know_the_depth_that_their_rows_need() -> None:
    info = info_of(COMPANIES["mixed"])
    nodes = NodeRows.of(info.led, info.led.device_rows(info), 3)
    assert (nodes.params.max_depth, nodes.params.any_trace, nodes.params.mixed_depth) == (DEPTH, True, True)
    assert isinstance(nodes.meta, object) and nodes.meta.any_phase_all
    assert SimpleNamespace(**vars(nodes)).seeded is not None
