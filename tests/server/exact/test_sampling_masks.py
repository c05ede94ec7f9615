"""SGLang's sampling masks and sampling logprobs, which trainers read: of the draw that gave the token, LED's or not.

A traced token's p_LED follows from its trace, which is held against transformers; the distribution of any other from
the engine's log-probabilities of the whole vocabulary.
"""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from led_sglang.testing import Reply
from tests.server import masks_recompute
from tests.server.api import streamed
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Oracle, Request, check, thinking_prompt, words
from tests.server.exact.cases import PARAMETERS, PROMPTS, mixed_batch
from tests.server.masks_recompute import policies
from tests.server.methods import LogprobClient, distributions
from tests.server.methods_recompute import distance
from tests.server.recompute import Query
from tests.server.servers import Server

pytestmark = pytest.mark.server
FILTERS: dict[str, float] = {"top_k": 6}  # the engine's; SGLang wants a finite top_k with a mask


@pytest.fixture(scope="module")
def logprob_client(exact_server: Server) -> LogprobClient:
    return LogprobClient(exact_server.url)


def hold(*replies: Reply) -> None:
    for reply in replies:
        assert reply.request.mask is not None
        found = masks_recompute.faults(
            reply.meta, reply.output_ids, policies(reply, distributions(reply)), reply.request.mask
        )
        assert not found, f"{len(found)} faults: " + "\n".join(found[:5])


def same_masks(meta: dict[str, Any], other: dict[str, Any]) -> None:
    """But for the last bits, as the prefix cache cuts prompts differently."""
    mask, logprobs = "output_token_sampling_mask", "output_token_sampling_logprobs"
    assert [*map(sorted, meta[mask])] == [*map(sorted, other[mask])]
    assert flat(meta[logprobs]) == pytest.approx(flat(other[logprobs]), abs=1e-4)


def flat(logprobs: list[Any]) -> list[float]:
    return [value for one in logprobs for value in (one if isinstance(one, list) else [one])]


def wanting(request: Request, mode: str = "selected", **filters: float) -> Request:
    return replace(request, mask=mode, filters=FILTERS | filters, return_logprob=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_of_every_parameter(name: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Of the token, of all its mask, and for a request that asks for no trace: the same."""
    query = PARAMETERS[name]
    selected = logprob_client.generate(wanting(Request(thinking_prompt(700, 16), query, num_tokens=24, seed=21)))
    check(oracle, selected)
    hold(selected)
    if query.temperature:  # greedily the policy is the coin's, and `led_logprob` that of the distributions
        pairs = zip(selected.meta["led_logprob"], selected.meta["output_token_sampling_logprobs"], strict=True)
        both = [(ours, reported) for ours, reported in pairs if ours is not None]
        assert both
        assert [ours for ours, _ in both] == pytest.approx([reported for _, reported in both], abs=1e-5)
    support = logprob_client.generate(replace(selected.request, mask="support"))
    hold(support)
    untraced = {**selected.meta["led_params"], "trace": False}
    for traced in (selected, support):
        reported = logprob_client.generate(replace(traced.request, led=untraced))
        assert reported.output_ids == traced.output_ids and "led_candidates" not in reported.meta
        same_masks(reported.meta, traced.meta)


@pytest.mark.parametrize("seed", [4, None])
@pytest.mark.parametrize("name", PROMPTS)
def test_inside_and_outside_the_phase(
    name: str, seed: int | None, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    """Outside, the engine's filters: with a seed LED draws from what they leave, without one the engine does."""
    prompt_ids, query = PROMPTS[name]
    for filters in ({}, {"top_p": 0.5, "top_k": 20}, {"min_p": 0.1, "top_p": 0.9, "top_k": 20}):
        reply = logprob_client.generate(wanting(Request(prompt_ids, query, 32, seed), "support", **filters))
        check(oracle, reply)
        hold(reply)


@pytest.mark.parametrize("mode", ["selected", "support"])
def test_of_a_mixed_batch(mode: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Sixteen requests at once, some without LED, every third without masks, in either mode."""
    off = [Request(thinking_prompt(710 + i), Query(0.6), 15, seed=None, led=False) for i in range(2)]
    requests = [
        wanting(request, mode if i % 2 else "support", top_p=0.8) if i % 3 else replace(request, return_logprob=True)
        for i, request in enumerate([*mixed_batch(), *off])
    ]
    replies = logprob_client.together(requests)
    hold(*(reply for reply in replies if reply.request.mask))
    check(oracle, *(reply for reply in replies if "led_candidates" in reply.meta))
    assert all("output_token_sampling_mask" not in reply.meta for reply in replies if not reply.request.mask)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_n_samples_and_batches_of_led_alone(temperature: float, logprob_client: LogprobClient) -> None:
    """A batch that LED decides by itself, where the engine's draw would be left out."""
    query = Query(temperature, phase="all")
    requests = [wanting(Request(thinking_prompt(720 + i), query, 12, seed=None)) for i in range(6)]
    hold(*logprob_client.together(requests))

    def samples(request: Request, led: Any) -> httpx.Response:
        body = replace(request, led=led).body()
        body["sampling_params"]["n"] = 3
        return httpx.post(f"{logprob_client.url}/generate", json=body, timeout=60)

    sampled = {led: samples(requests[0], led) for led in (None, False)}
    assert sampled[None].status_code == sampled[False].status_code, "n > 1 with masks is SGLang's to mend: 500"


def test_a_stream_reports_the_same(logprob_client: LogprobClient) -> None:
    request = wanting(Request(thinking_prompt(730), num_tokens=24, seed=5), "support")
    whole = logprob_client.generate(request)
    hold(whole)
    with httpx.Client(base_url=logprob_client.url, timeout=60) as http:
        chunks = list(streamed(http, request.body()))
    assert len(chunks) > 5
    reported: dict[str, list[Any]] = {
        key: [] for key in ("output_token_sampling_mask", "output_token_sampling_logprobs")
    }
    for chunk in chunks:  # the server's streams hold what is new only
        for key, values in reported.items():
            assert len(chunk["meta_info"][key]) == len(chunk["output_ids"])
            values += chunk["meta_info"][key]
    same_masks(reported, whole.meta)


def test_the_engines_other_outputs_report_the_final_layer(client: Client, logprob_client: LogprobClient) -> None:
    """With or without masks: the rows of docs/rollouts.md that stay the engine's."""
    request = Request(thinking_prompt(740), num_tokens=12, seed=6, return_logprob=True)
    plain, reported = logprob_client.generate(request), logprob_client.generate(wanting(request))
    for own, other in zip(distributions(plain), distributions(reported), strict=True):
        assert distance(own, other) < 1e-4
    assert plain.output_ids == reported.output_ids
    assert [token for _, token, _ in reported.meta["output_token_logprobs"]] == reported.output_ids


def test_behind_the_thought_with_a_seed_the_mask_holds_the_token(logprob_client: LogprobClient) -> None:
    """The draw that a named seed repeats is LED's own: from what the engine's filters leave."""
    prompt_ids = [OPEN_ID, *words(750, 8), CLOSE_ID]
    replies = logprob_client.together([wanting(Request(prompt_ids, Query(1.5), 32, seed=i), top_k=3) for i in range(4)])
    hold(*replies)
    assert len({tuple(reply.output_ids) for reply in replies}) > 1
