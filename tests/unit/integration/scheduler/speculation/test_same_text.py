"""The accepted text is that of LED without speculation, token by token, whatever the drafts are."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.integration.scheduler.speculation import verify
from led_sglang.wire import ACTIVE, EXPLORED, FALLBACK, THINKING
from tests.unit.integration.scheduler.speculation import world
from tests.unit.integration.scheduler.speculation.world import BACKENDS, CLOSE, OPEN, Drafter, Request, Server

Serve = Callable[..., Server]
DRAFTERS: list[Drafter] = [world.right, world.wrong, world.any_token, world.markers, world.mixed, world.padding]
NUM_TOKENS = 20


@pytest.mark.parametrize("is_chain", [True, False], ids=["chain", "tree"])
@pytest.mark.parametrize("drafter", DRAFTERS, ids=lambda drafter: drafter.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_token_for_token(backend: str, drafter: Drafter, is_chain: bool, serve: Serve) -> None:
    shape = {"num_nodes": 5} if is_chain else {}
    server = serve(world.requests(), BACKENDS[backend], drafter, is_chain, **shape)
    num_verified = server.serve(NUM_TOKENS)
    for request in server.requests:
        assert request.output_ids[:NUM_TOKENS] == server.oracle.text(request, NUM_TOKENS)
    server.check_reports()
    assert server.runtime.num_step_failures == 0
    num_tokens = sum(len(request.output_ids) for request in server.requests)
    if drafter is world.right:
        assert num_tokens / len(server.requests) / num_verified > 2.0
    if drafter is world.wrong:
        assert num_verified == NUM_TOKENS


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_reported_of_a_token_is_what_was_decided_of_it(backend: str, serve: Serve) -> None:
    server = serve(world.requests(), BACKENDS[backend], seed=3)
    server.serve(NUM_TOKENS)
    seen = dict.fromkeys(("explored", "closed", "opened", "traced", "outside"), 0)
    for request in server.requests:
        if not request.is_ours:
            assert all(entry == 0 for entry in request.entries)
            continue
        for i, entry in enumerate(request.entries):
            text = request.prompt + request.output_ids[:i]
            expected = server.oracle(request, text)
            flags = entry if isinstance(entry, int) else entry[0]
            assert flags == expected.flags and not flags & FALLBACK
            seen["explored"] += bool(flags & EXPLORED)
            seen["opened"] += text[-2:] == OPEN and bool(flags & THINKING)
            seen["closed"] += text[-2:] == CLOSE and not flags & THINKING
            seen["outside"] += not flags & ACTIVE
            if not request.params.get("trace"):
                assert isinstance(entry, int)
            elif flags & ACTIVE:
                check_trace(entry, expected, request)
                seen["traced"] += 1
            else:
                assert entry[1:] == (None,) * 7
    assert all(number > 5 for number in seen.values()), seen


def check_trace(entry: tuple[Any, ...], expected: world.Expected, request: Request) -> None:
    step = expected.step
    assert step is not None and step.entropy is not None and step.logprob is not None
    assert request.row.request is not None
    k = request.row.request.params.top_k
    confidence, entropy, logprob, candidates, exploit, explore, depths = entry[1:]
    assert candidates == step.candidate_ids[0, :k].tolist()
    assert len(depths) == request.row.request.params.depth and max(depths) == pytest.approx(entropy)
    found = (confidence, entropy, logprob, exploit, explore)
    wanted = (
        float(step.confidence),
        float(step.entropy),
        float(step.logprob),
        step.exploit_probs[0, :k].tolist(),
        step.explore_probs[0, :k].tolist(),
    )
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("where", ["final", "latents"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_none_are_the_engines(backend: str, where: str, serve: Serve) -> None:
    """NaN at some texts: the engine's token, and the path ends there.

    Of latents: below such a node nothing is computed that only exploring needs, so it ends there at the latest.
    """
    model = world.Model()
    if where == "final":
        model.final_logits[::4] = torch.nan
    else:
        model.latents[1, ::2] = torch.inf
    server = serve(world.requests(), BACKENDS[backend], world.right, model=model, is_exact=where == "final")
    server.serve(NUM_TOKENS)
    server.check_reports()
    fallbacks = server.runtime.counts.status()["fallback_reasons"]
    assert fallbacks["not_finite"] > (20 if where == "final" else 5) and fallbacks["step_failed"] == 0
    assert server.runtime.num_step_failures == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("others", [[], [Request(method=None)]], ids=["alone", "beside another"])
def test_one_request_and_no_latents(backend: str, others: list[Request], serve: Serve) -> None:
    server = serve([Request(params={"depth": 1}, seed=5), *others], BACKENDS[backend])
    server.runtime.num_led_layers = 0
    server.serve(NUM_TOKENS)
    server.check_reports()
    assert server.runtime.one_pass_state.num_steps["coin_first"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_led_is_the_engines(backend: str, serve: Serve) -> None:
    server = serve([Request(method=None), Request(method="none")], BACKENDS[backend])
    server.serve(NUM_TOKENS)
    server.check_reports()
    assert server.runtime.one_pass_state.num_steps["coin_first"] == 0
    assert server.runtime.counts.status()["tokens"]["none"] == len(server.requests[1].output_ids)


def test_sanitized_logits_are_read_as_they_were(serve: Serve) -> None:
    """SGLANG_SANITIZE_NAN_LOGITS: what a grammar forbids is -1e30, which the latent layers must not bring back."""
    model = world.Model()
    model.final_logits[:, 5::7] = -1e30
    request = Request(params={"phase": "all", "exploit": False})
    server = serve([request], BACKENDS["numba"], world.right, model=model)
    server.runtime.is_sanitized = True
    model.final_logits[model.final_logits < -1e29] = -torch.inf
    sanitize = server.eagle_sample

    def sanitized(verify_input: object, batch: object, output: object, *args: object, **kw: object) -> object:
        output.next_token_logits.masked_fill_(output.next_token_logits.isneginf(), -1e30)  # type: ignore[attr-defined]
        return sanitize(verify_input, batch, output, *args, **kw)

    server.eagle_sample = sanitized  # type: ignore[method-assign]
    server.serve(2 * NUM_TOKENS)
    assert not {5, 12, 19} & set(request.output_ids)
    server.check_reports()


def test_a_batch_without_leds_requests_costs_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tree is grown and no node is made a row; where nobody named LED the engine's outcome is not even touched."""
    plain = [Request(method="none", prompt=[5, 1, 2 + i]) for i in range(3)]
    server = serve(plain, BACKENDS["numba"])
    seen: list[str] = []
    for owner, name in ((verify.VerifyInputs, "begin"), (type(server.runtime.backend), "draft_tree")):
        monkeypatch.setattr(owner, name, lambda *args, name=name, **kwargs: seen.append(name))
    server.serve(NUM_TOKENS)
    assert seen == [] and server.runtime.num_step_failures == 0
    assert all(len(request.output_ids) >= NUM_TOKENS for request in plain)
    monkeypatch.setattr(verify, "_verify", lambda *args: seen.append("_verify"))
    stock = tuple(torch.zeros(2) for _ in range(3))
    batch: Any = SimpleNamespace(sampling_info=SimpleNamespace(led=None))
    assert verify.verify(lambda *args, **kwargs: stock, None, batch, None) is stock  # type: ignore[arg-type]
    assert seen == []
