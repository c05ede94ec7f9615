"""Every traced value of running servers against a recomputation from token ids with transformers in float64.

The recomputation knows nothing of led_sglang; `test_every_mutation_of_the_recomputation_is_caught` shows that it would
notice a wrong layer, order, norm or temperature.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from led_sglang import trace
from led_sglang.testing import Reply, compare
from led_sglang.testing.oracle import TOLERANCE
from tests.server.checkpoints import CLOSE_ID, END_ID, MARKERS, OPEN_ID
from tests.server.clients import Client, Oracle, Request, check, sharp_server, thinking_prompt, words
from tests.server.exact.exactness import Exactness
from tests.server.methods import (
    FREE_TEMPERATURE,
    NUM_TOKENS,
    LogprobClient,
    agreed,
    case_of,
    distributions,
    request_for,
)
from tests.server.methods_recompute import compare_soft, free_run
from tests.server.recompute import MUTATIONS, Mutation, Query, oracle_of
from tests.server.servers import Server, kill_scheduler

pytestmark = pytest.mark.server


ENGINE: dict[str, Query] = {
    "bias": Query(logit_bias={5: 20.0, 6: 19.0, 7: -100.0, 300: 18.5}),
    "forbidden but for three": Query(logit_bias={i: -1e4 for i in range(1003) if i not in (11, 222, 633)}),
    "frequency": Query(frequency_penalty=1.9, logit_bias={8: 14.0, 9: 13.0}),
    "presence": Query(presence_penalty=-1.5),
    "repetition": Query(repetition_penalty=1.8, logit_bias={8: 6.0}),
    "rewarded repetition": Query(repetition_penalty=0.8),
    "half of the vocabulary discouraged": Query(logit_bias=dict.fromkeys(range(0, 1003, 2), -4.0)),
    "at least so many tokens": Query(min_new_tokens=16, logit_bias={END_ID: 22.0}),
    "all of them": Query(
        frequency_penalty=0.7,
        presence_penalty=0.9,
        repetition_penalty=1.3,
        min_new_tokens=10,
        logit_bias={8: 9.0, 9: 9.0, END_ID: 8.0, 10: -100.0, 200: -3.0},
        temperature=1.0,
    ),
    "all of them, every ablation": Query(
        frequency_penalty=0.7,
        presence_penalty=-0.3,
        repetition_penalty=1.2,
        logit_bias={8: 7.0, 9: -7.0},
        latent_norm=True,
        normalize_layers=True,
        exploit=False,
        latent_offset=1,
        top_k=16,
        depth=11,
    ),
}


@pytest.mark.quick
class TestOneServer(Exactness):
    pass


@pytest.mark.parametrize("name", ENGINE)
def test_penalties_and_bias_act_on_every_layer(name: str, client: Client, oracle: Oracle) -> None:
    """The final distribution is the engine's, penalised and biased, and so is each latent layer's."""
    reply = client.generate(Request(thinking_prompt(60), ENGINE[name], num_tokens=24, seed=6))
    assert check(oracle, reply).num_active == 24
    plain = Reply(Request(reply.request.prompt_ids, Query(ENGINE[name].temperature), 24), reply.document)
    assert oracle.compare(plain).faults, "the penalty changed nothing"
    if name != "forbidden but for three":  # whose candidates come from the final layer all the same
        assert oracle.compare(reply, Mutation(edit_final_only=True)).faults, "no latent layer was edited"


def test_penalties_and_bias_in_a_mixed_batch(client: Client, oracle: Oracle) -> None:
    """Beside requests without any, prompts of several chunks, and a request that has left by then.

    What penalties count in a crowd, the engine's schedule decides (`recompute.lagging`): they are here alone above.
    """
    edits = [ENGINE[name] for name in ("bias", "forbidden but for three", "half of the vocabulary discouraged")]
    kinds = [*edits, ENGINE["at least so many tokens"], *edits, *[Query()] * 4, Query(temperature=0.0, depth=4)]
    requests = [Request(thinking_prompt(420 + i, 12 + 9 * i), query, 16 + i, seed=i) for i, query in enumerate(kinds)]
    replies = client.together(requests)
    check(oracle, *replies)
    plain = client.generate(requests[-2])  # the tables of its neighbours are gone
    check(oracle, plain)
    assert plain.output_ids == replies[-2].output_ids


EDIT_MUTATIONS = {
    "in the final layer only": (Mutation(edit_final_only=True), "all of them"),
    "others gain": (Mutation(renormalise=True), "half of the vocabulary discouraged"),
}


@pytest.mark.parametrize("name", EDIT_MUTATIONS)
def test_other_meanings_of_a_penalty_are_noticed(name: str, client: Client, oracle: Oracle) -> None:
    mutation, edits = EDIT_MUTATIONS[name]
    reply = client.generate(Request(thinking_prompt(421), ENGINE[edits], num_tokens=24, seed=9))
    check(oracle, reply)
    numbers = [fault for fault in oracle.compare(reply, mutation).faults if "explore[" in fault]
    assert len(numbers) > 12, f"hardly noticed: {numbers}"


def test_the_inspectors_events_of_an_incremental_stream(client: Client) -> None:
    sampling = {"temperature": 0.9, "max_new_tokens": 16, "ignore_eos": True}
    ask = {"prompt": "What is 17 + 5 * 3?", "sampling": sampling, "led": {"phase": "all"}, "seed": 1}
    *tokens, end = trace.stream(client.url, ask)
    assert len(tokens) == 16 == end["stats"]["led_tokens"]
    for token in tokens:
        assert token["id"] in [candidate for candidate, _ in token["candidates"]]
    assert sum(token["explored"] for token in tokens) == end["stats"]["explored_tokens"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_of_the_recomputation_is_caught(name: str, client: Client, oracle: Oracle) -> None:
    reply = client.generate(Request(thinking_prompt(400), num_tokens=24, seed=9))
    check(oracle, reply)
    comparison = oracle.compare(reply, MUTATIONS[name])
    assert len(comparison.faults) > 24, f"hardly noticed: {comparison.faults}"
    numbers = [fault for fault in comparison.faults if "explore[" in fault or "entropy" in fault]
    assert numbers, "noticed only by the way"
    assert not oracle.compare(reply, Mutation()).faults


def test_wrong_markers_and_lost_state_are_caught(client: Client, oracle: Oracle) -> None:
    """The flags are compared, not only the numbers: a recomputation that forgets the prompt disagrees."""
    prompt_ids = thinking_prompt(401)
    reply = client.generate(Request(prompt_ids, num_tokens=4))
    right, swapped = (oracle_of(oracle.model, prompt_ids, Query(), markers=ids) for ids in (MARKERS, MARKERS[::-1]))
    assert not compare(right, reply).faults
    assert len(compare(swapped, reply).faults) >= 4


@pytest.fixture
def crowded_client(qwen3_folder: Path, logs: Path) -> Iterator[Client]:
    """No prefix cache, and room for about a third of what the requests below need: some are retracted and resumed.

    The one-pass form, which a GPU takes for small batches: latents go through the head before the coin is known.
    """
    environment = {"SGLANG_INIT_NEW_TOKEN_RATIO": "0.05"}  # admit more than can be finished
    arguments = ("--disable-radix-cache", "--max-total-tokens", "320", "--led-max-depth", "9", "--led-form", "one_pass")
    with sharp_server(qwen3_folder, logs / "crowded.log", *arguments, environment=environment) as server:
        yield Client(server.url)


@pytest.mark.timeout(600)
def test_retracted_requests_without_prefix_cache(crowded_client: Client, oracle: Oracle) -> None:
    # The engine reserves all tokens of a request that ignores its end token and never retracts it: forbid the token.
    never_ends = {END_ID: -1e4}
    changing = {**never_ends, OPEN_ID: 9.0, CLOSE_ID: 9.0}  # the phase may change before the request is retracted
    queries = [
        Query(logit_bias=never_ends),
        Query(logit_bias=changing, temperature=1.0),
        Query(depth=3, top_k=5, logit_bias=never_ends),
        Query(temperature=0.0),  # the only ones that ride: a bias keeps a row out. None of them draws the end token
    ]
    prompts = [thinking_prompt(500 + i, 12) for i in range(12)]
    requests = [Request(p, queries[i % 4], num_tokens=64, seed=i, ignore_eos=False) for i, p in enumerate(prompts)]
    extends = 0
    for _ in range(4):  # on a busy machine they may arrive too far apart to crowd each other out
        replies = crowded_client.together(requests)
        num_retractions = [reply.meta["num_retractions"] for reply in replies]
        extends += len(requests) + sum(num_retractions)
        if any(num_retractions):
            break
    assert any(num_retractions), "nothing was retracted"
    assert all(reply.meta["cached_tokens"] == 0 or reply.meta["num_retractions"] for reply in replies)
    assert check(oracle, *replies).num_steps == 12 * 64
    info = crowded_client.get("/led/info")
    steps = info["form"]["steps"]
    assert steps["one_pass"] > 64 and steps["coin_first"] <= extends, "only extend steps draw first"
    assert info["form"]["fault"] is None and info["counters"]["step_failures"] == 0


@pytest.fixture
def two_rank_server(qwen3_folder: Path, logs: Path) -> Iterator[Server]:
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"}
    arguments = ("--tp", "2", "--led-max-depth", "12", "--max-total-tokens", "4096")
    arguments += ("--led-methods", "led,soft_thinking")
    with sharp_server(qwen3_folder, logs / "two_ranks.log", *arguments, environment=environment) as server:
        yield server


def soft_thinking_follows(logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Every mixture's embedding is a sum over both ranks' halves of the table: recomputed from the prompt alone."""
    request = request_for({"method": "soft_thinking"}, thinking_prompt(610), FREE_TEMPERATURE)
    reply = logprob_client.generate(request)
    agreed(compare_soft(free_run(oracle.model, case_of(request), NUM_TOKENS), distributions(reply), reply.output_ids))


@pytest.mark.timeout(600)
def test_two_tensor_parallel_ranks(two_rank_server: Server, client: Client, oracle: Oracle) -> None:
    """Half of the head on each rank, the second half padded: the same numbers, and the same tokens as on one rank.

    Then a rank dies, and the whole server with it.
    """
    two_rank_client = Client(two_rank_server.url)
    queries = [Query(), Query(latent_norm=True, top_k=16), Query(temperature=0.0, depth=12), Query(exploit=False)]
    requests = [Request(thinking_prompt(600 + i, 12), a, num_tokens=10, seed=i) for i, a in enumerate(queries)]
    requests.append(Request([OPEN_ID, *words(604, 6), CLOSE_ID], num_tokens=10, seed=11))
    requests = [replace(request, mask="selected", filters={"top_k": 5}) for request in requests]
    replies = two_rank_client.together(requests)
    check(oracle, *replies)
    alone = client.together(requests)
    for reply, other in zip(replies, alone, strict=True):
        assert reply.output_ids == other.output_ids
        reported, expected = (one.meta["output_token_sampling_logprobs"] for one in (reply, other))
        assert reported == pytest.approx(expected, abs=TOLERANCE)
    soft_thinking_follows(LogprobClient(two_rank_server.url), oracle)
    kill_scheduler(two_rank_server, "TP1")
    assert two_rank_server.process.wait(60) != 0
    # Whoever notices first: SGLang's watchdog, or the other rank.
    said = two_rank_server.end_of_log(20000)
    assert any(
        words in said
        for words in ("crashed with exit code -9", "Connection closed by peer", "Connection reset by peer")
    )
