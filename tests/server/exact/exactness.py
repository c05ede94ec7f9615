"""The tests that any server with LED has to pass: every traced number against a recomputation from the token ids."""

from itertools import pairwise

import pytest

from led_sglang.testing.oracle import TOLERANCE, forward
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Oracle, Request, check, thinking_prompt, words
from tests.server.exact.cases import PARAMETERS, PROMPTS, mixed_batch
from tests.server.recompute import Query, engine_logprobs


class Exactness:
    """A subclass named Test* runs them on the `client` of its module or package, beside an `oracle` of its model."""

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_parameters(self, name: str, client: Client, oracle: Oracle) -> None:
        query = PARAMETERS[name]
        requests = [Request(thinking_prompt(i, 16 + i), query, num_tokens=16, seed=100 + i) for i in range(2)]
        comparison = check(oracle, *client.together(requests))
        assert comparison.num_active >= 10  # a drawn </think> ends the phase
        if query.top_k > 1 and query.temperature:
            assert comparison.num_explored > 0
        if query.depth > 1 and query.top_k > 1:
            assert max(comparison.depths) > 1, "no step in which a latent layer mattered"

    @pytest.mark.parametrize("name", PROMPTS)
    def test_thinking_state(self, name: str, client: Client, oracle: Oracle) -> None:
        prompt_ids, query = PROMPTS[name]
        reply = client.generate(Request(prompt_ids, query, num_tokens=32, seed=4))
        check(oracle, reply)
        if query.logit_bias:
            flags = reply.meta["led_think"]
            num_changes = sum(a != b for a, b in pairwise(flags))
            assert num_changes >= 2, f"the phase hardly changed: {flags}"

    def test_a_stream_is_exact_chunk_by_chunk(self, client: Client, oracle: Oracle) -> None:
        request = Request(thinking_prompt(62), PROMPTS["phase changes in the output"][1], num_tokens=32, seed=8)
        whole, stream = client.generate(request), client.stream(request)
        check(oracle, whole, stream)
        assert stream.output_ids == whole.output_ids
        assert stream.meta["led_stats"] == whole.meta["led_stats"]

    def test_the_engines_logprobs_are_those_of_the_led_tokens(self, client: Client, oracle: Oracle) -> None:
        for query in (Query(), Query(temperature=0.0), Query(temperature=1.0, logit_bias={5: 15.0})):
            reply = client.generate(Request(thinking_prompt(61), query, num_tokens=16, seed=7, return_logprob=True))
            check(oracle, reply)
            reported = reply.meta["output_token_logprobs"]
            assert [token for _, token, _ in reported] == reply.output_ids
            layers = forward(oracle.model, reply.request.prompt_ids + reply.output_ids)
            expected = engine_logprobs(layers, reply.request.prompt_ids, reply.output_ids, query)
            assert [logprob for logprob, _, _ in reported] == pytest.approx(expected, abs=TOLERANCE)

    def test_cached_prefix_and_chunked_prefill(self, client: Client, oracle: Oracle) -> None:
        """The second request finds most of its prompt in the cache, the marker too; both prompts exceed a chunk."""
        shared = [*words(70, 60), OPEN_ID, *words(71, 90)]
        first = client.generate(Request([*shared, *words(72, 5)], seed=1))
        second = client.generate(Request([*shared, *words(73, 40)], seed=2))
        third = client.generate(Request([*shared, *words(72, 5)], seed=3))  # all but the last token cached
        closed = client.generate(Request([*shared, CLOSE_ID], seed=3))
        assert first.meta["cached_tokens"] == 0
        assert second.meta["cached_tokens"] >= 150
        assert third.meta["cached_tokens"] >= 154
        assert closed.meta["cached_tokens"] >= 150
        assert check(oracle, first, second, third).num_active == 36
        assert check(oracle, closed).num_active == 0

    def test_long_prompts_arriving_together(self, client: Client, oracle: Oracle) -> None:
        """Chunks of one prompt run between other requests' steps."""
        requests = [Request([*words(80 + i, 20 + 37 * i), OPEN_ID, *words(90 + i, i)], seed=i) for i in range(5)]
        assert check(oracle, *client.together(requests)).num_active == 60

    def test_mixed_batch(self, client: Client, oracle: Oracle) -> None:
        """Sixteen requests at once, all different, two of them without LED: each is decoded as it asked."""
        replies = client.together(mixed_batch())
        *traced, first_off, second_off = replies
        assert check(oracle, *traced).num_explored > 20
        for off in (first_off, second_off):
            assert off.meta["led_params"] == {"method": "none"}
            assert "led_think" not in off.meta
            layers = forward(oracle.model, off.request.prompt_ids + off.output_ids)
            start = len(off.request.prompt_ids) - 1
            best = layers.final_logits[start : start + 15].argmax(-1).tolist()
            assert off.output_ids == best
