"""The same request with the same seed gives the same tokens whatever else the server does; other rows are untouched."""

from dataclasses import replace

import pytest

from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Oracle, Request, check, thinking_prompt, words
from tests.server.recompute import Query

pytestmark = pytest.mark.server

# Thinking for some tokens, then closed and sampled by the engine's rules with our noise: the whole text must repeat.
LEAVING = Query(temperature=1.0, logit_bias={CLOSE_ID: 11.0})
SEEDED: dict[str, Request] = {
    "thinking": Request(thinking_prompt(800), num_tokens=32, seed=77),
    "after thinking": Request([OPEN_ID, *words(801, 6), CLOSE_ID], num_tokens=32, seed=77),
    "leaving thinking": Request(thinking_prompt(802), LEAVING, num_tokens=48, seed=77),
    "greedy": Request(thinking_prompt(803), Query(temperature=0.0), num_tokens=32, seed=77),
    "all phases, chunked prompt": Request(words(804, 90), Query(phase="all", top_k=3), num_tokens=32, seed=77),
}


def crowd() -> list[Request]:
    """Neighbours of every kind, with other seeds, the same seed and none."""
    kinds = [*SEEDED.values()]
    others = [replace(kinds[i % 5], prompt_ids=thinking_prompt(900 + i, 10 + 7 * i), seed=i) for i in range(7)]
    same = [Request(thinking_prompt(920), num_tokens=40, seed=77)]
    unseeded = [Request(thinking_prompt(921 + i), num_tokens=20 + i, seed=None) for i in range(4)]
    off = [Request(thinking_prompt(930 + i), num_tokens=25, seed=None, led=False) for i in range(3)]
    return others + same + unseeded + off


@pytest.mark.parametrize("name", SEEDED)
def test_same_seed_same_tokens_alone_in_a_crowd_and_after_a_flush(name: str, client: Client) -> None:
    request = SEEDED[name]
    client.flush_cache()
    alone = client.generate(request)
    again = client.generate(request)  # the prompt now comes from the prefix cache
    in_crowd = client.together([*crowd(), request])[-1]
    client.flush_cache()
    afterwards = client.generate(request)
    assert again.meta["cached_tokens"] > 0
    assert afterwards.meta["cached_tokens"] == 0
    for other in (again, in_crowd, afterwards):
        assert other.output_ids == alone.output_ids
        assert other.meta["led_explored"] == alone.meta["led_explored"]
    if name == "leaving thinking":
        assert alone.meta["led_think"][0] and not alone.meta["led_think"][-1], "thinking was never left"


def test_two_seeds_differ(client: Client) -> None:
    for name in ("thinking", "after thinking", "leaving thinking"):
        request = SEEDED[name]
        one, other = client.together([request, replace(request, seed=78)])
        assert one.output_ids != other.output_ids, name
    negative, large = (replace(SEEDED["thinking"], seed=seed) for seed in (0, 2**31 - 1))
    assert client.generate(negative).output_ids != client.generate(large).output_ids


def test_without_a_seed_two_answers_differ(client: Client) -> None:
    request = replace(SEEDED["thinking"], seed=None)
    assert client.generate(request).output_ids != client.generate(request).output_ids


@pytest.mark.parametrize("name", ["thinking", "after thinking", "leaving thinking"])
def test_samples_of_one_request_differ_and_repeat(name: str, client: Client, oracle: Oracle) -> None:
    request = SEEDED[name]
    first = client.samples(request, 4)
    client.together(crowd()[:6])
    second = client.samples(request, 4)
    texts = [reply.output_ids for reply in first]
    assert [reply.output_ids for reply in second] == texts
    assert len({tuple(text) for text in texts}) == 4, "two samples with one seed are the same"
    assert client.generate(request).output_ids == texts[0], "sample 0 is not the request with n = 1"
    check(oracle, *first)


def test_rows_without_led_are_untouched_in_a_mixed_batch(client: Client) -> None:
    """Greedy rows that switched LED off give the same tokens beside LED rows as alone."""
    query = Query(temperature=0.0)
    rows = [Request(thinking_prompt(950 + i), query, num_tokens=32, seed=None, led=False) for i in range(3)]
    alone = [client.generate(row).output_ids for row in rows]
    mixed = client.together([*crowd(), *rows])[-3:]
    assert [reply.output_ids for reply in mixed] == alone
    assert all(reply.meta["led_params"] == {"method": "none"} for reply in mixed)
