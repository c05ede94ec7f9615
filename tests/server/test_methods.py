"""Every method over one running server: against recomputations, together in a batch, with the prefix cache.

The engine's log-probabilities of the whole vocabulary show the distribution that each token was drawn from.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from led_sglang.config.methods import METHOD_TABLE
from led_sglang.testing import Reply
from led_sglang.testing.oracle import TOLERANCE, Array, forward
from tests.server import masks_recompute
from tests.server.checkpoints import CLOSE_ID, END_ID, OPEN_ID, VOCAB_SIZE
from tests.server.clients import Oracle, Request, check, sharp_server, thinking_prompt, words
from tests.server.methods import (
    FREE_TEMPERATURE,
    NO_FAULT,
    NUM_TOKENS,
    LogprobClient,
    agreed,
    case_of,
    distributions,
    request_for,
)
from tests.server.methods_recompute import (
    DOLA_LAYERS,
    LOWEST,
    Fault,
    Outcome,
    SoftRun,
    compare_logits,
    compare_soft,
    confident_choices,
    distance,
    dola_choices,
    free_run,
    log_softmax,
    sled_choices,
    soft_run,
)
from tests.server.recompute import Query, adjusted, lagging
from tests.server.servers import Server, install_plugin

pytestmark = pytest.mark.server


METHODS = tuple(name for name in METHOD_TABLE if name != "none")
REWRITING = tuple(name for name, method in METHOD_TABLE.items() if method.rewrite)
NUM_SLOTS = 16


# A matrix product's last bits depend on how many rows it has (MKL picks another kernel), in the stock engine too, and a
# soft request feeds them back into itself. In blocks of 32 rows they do not, so that what is left to make a row depend
# on its neighbours is us. (Not by --enable-deterministic-inference, which switches the prefix cache off.)
SAME_BITS_FOR_ANY_BATCH = """\
from led_sglang.cpu_platform.deterministic import enable_batch_invariant_mode

enable_batch_invariant_mode()
"""


@pytest.fixture(scope="module")
def methods_server(qwen3_folder: Path, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Prefix cache on, prompts cut into chunks of 32 tokens, every method enabled, few slots for many requests."""
    arguments = ("--chunked-prefill-size", "32", "--max-total-tokens", "8192", "--led-methods", ",".join(METHODS))
    arguments += ("--led-confident-layers", "12")
    arguments += ("--max-running-requests", str(NUM_SLOTS))
    environment = install_plugin(tmp_path_factory.mktemp("plugin"), SAME_BITS_FOR_ANY_BATCH)
    with sharp_server(qwen3_folder, logs / "methods.log", *arguments, environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def logprob_client(methods_server: Server) -> LogprobClient:
    return LogprobClient(methods_server.url)


def held(outcome: Outcome, least: int) -> None:
    assert len(outcome.faults) >= least, f"hardly noticed: {outcome.faults}"


# -- methods that rewrite the logits --------------------------------------------------------------------------------


def against_layers(oracle: Oracle, reply: Reply, fault: Fault = NO_FAULT) -> Outcome:
    """Methods that rewrite the logits."""
    request, led = reply.request, reply.request.led
    layers = forward(oracle.model, request.prompt_ids + reply.output_ids)

    def choices(row: int) -> dict[int, list[Array]]:
        before = reply.output_ids[: row + 1 - len(request.prompt_ids)]
        edit = partial(adjusted, counted=lagging(request.prompt_ids, before), query=request.query)
        if led["method"] == "dola":
            return dola_choices(layers, row, led.get("layers", "low"), led.get("relative_top", 0.1), fault, edit)
        if led["method"] == "sled":
            settings = led.get("evolution_rate", 2.0), led.get("evolution_scale", 10)
            return sled_choices(layers, row, *settings, fault, edit)
        assert led["method"] == "confident", f"no recomputation of {led['method']}"
        num_layers = led.get("num_layers", 10) if led.get("p", 1.0) else 1
        return confident_choices(layers, row, num_layers, led.get("select_method", "trough"), fault, edit)

    reported = distributions(reply)
    return compare_logits(choices, reported, request.prompt_ids, reply.output_ids, request.query.temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize(("half", "relative_top"), [("low", 0.1), ("high", 0.1), ("low", 0.001), ("high", 0.0)])
def test_dola(
    half: str, relative_top: float, temperature: float, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    led = {"method": "dola", "layers": half, "relative_top": relative_top}
    reply = logprob_client.generate(request_for(led, thinking_prompt(1), temperature))
    outcome = agreed(against_layers(oracle, reply))
    assert set(outcome.chosen) <= set(DOLA_LAYERS[half])
    if relative_top >= 0.1:
        assert all((step > LOWEST).sum() < VOCAB_SIZE / 10 for step in distributions(reply)), "no token was dropped"


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("num_layers", [2, 5, 10])
def test_confident(num_layers: int, temperature: float, logprob_client: LogprobClient, oracle: Oracle) -> None:
    led = {"method": "confident", "num_layers": num_layers}
    reply = logprob_client.generate(request_for(led, thinking_prompt(2), temperature))
    outcome = agreed(against_layers(oracle, reply))
    assert any(outcome.chosen), "the valley was never behind the final layer"
    assert max(outcome.chosen) < num_layers


@pytest.mark.parametrize(
    ("more", "fewest", "most"),
    [
        ({"select_method": "trough-m1"}, 1, 9),
        ({"select_method": "trough-p1"}, 0, 8),
        ({"select_method": "last-m4"}, 4, 4),
        ({"select_method": "last-m8", "num_layers": 5}, 4, 4),
        ({"p": 0.0}, 0, 0),
        ({"num_layers": 12}, 0, 11),  # the unlimited window
    ],
)
def test_the_authors_options(
    more: dict[str, Any], fewest: int, most: int, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    reply = logprob_client.generate(request_for({"method": "confident", **more}, thinking_prompt(2), 0.6))
    outcome = agreed(against_layers(oracle, reply))
    assert fewest <= min(outcome.chosen) and max(outcome.chosen) <= most


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize(("evolution_rate", "evolution_scale"), [(2.0, 10), (10.0, 5), (1.0, 256), (0.0, 1)])
def test_sled(
    evolution_rate: float, evolution_scale: int, temperature: float, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    led = {"method": "sled", "evolution_rate": evolution_rate, "evolution_scale": evolution_scale}
    reply = logprob_client.generate(request_for(led, thinking_prompt(8), temperature))
    agreed(against_layers(oracle, reply))
    assert all((step > -np.inf).sum() <= evolution_scale for step in distributions(reply)), "no token was dropped"


SLED_FAULTS = {"away from the layers": Fault(reverse_step=True), "no square": Fault(power=1.0)}


@pytest.mark.parametrize("name", SLED_FAULTS)
def test_a_wrong_step_of_sled_is_noticed(name: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    reply = logprob_client.generate(request_for({"method": "sled"}, thinking_prompt(9)))
    agreed(against_layers(oracle, reply))
    held(against_layers(oracle, reply, SLED_FAULTS[name]), NUM_TOKENS // 4)


def test_dola_layers_are_chosen_row_by_row(logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Eight requests at once: in one and the same step they contrast with different layers."""
    settings = [{"method": "dola", "layers": half} for half in ("low", "high")] * 4
    requests = [request_for(led, thinking_prompt(50 + i, 12)) for i, led in enumerate(settings)]
    outcomes = [agreed(against_layers(oracle, reply)) for reply in logprob_client.together(requests)]
    high = zip(*[outcome.chosen for outcome in outcomes[1::2]], strict=True)
    assert any(len(set(step)) > 1 for step in high), "all rows chose the same layer"


LAYER_FAULTS = {"one layer too early": Fault(layer_shift=1), "the other norm": Fault(swap_norm=True)}


@pytest.mark.parametrize("method", REWRITING)
@pytest.mark.parametrize("name", LAYER_FAULTS)
def test_a_wrong_layer_is_noticed(name: str, method: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    reply = logprob_client.generate(request_for({"method": method}, thinking_prompt(3)))
    agreed(against_layers(oracle, reply))
    held(against_layers(oracle, reply, LAYER_FAULTS[name]), NUM_TOKENS // 4)
    if method == "dola":
        held(against_layers(oracle, reply, Fault(pick_other=True)), NUM_TOKENS // 4)


def test_rewritten_logits_act_outside_the_thinking_phase_too(logprob_client: LogprobClient, oracle: Oracle) -> None:
    prompt_ids = [OPEN_ID, *words(4, 12), CLOSE_ID, *words(5, 4)]
    for method in REWRITING:
        agreed(against_layers(oracle, logprob_client.generate(request_for({"method": method}, prompt_ids))))


EDITS: dict[str, dict[str, Any]] = {
    "bias": {"logit_bias": {5: 6.0, 6: -6.0, **dict.fromkeys(range(100, 1003, 3), -3.0)}},
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 1.9},
    "repetition": {"repetition_penalty": 1.7},
    "rewarded repetition": {"repetition_penalty": 0.8},
    "at least so many tokens": {"min_new_tokens": 12, "logit_bias": {END_ID: 25.0}},
    "all": {
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.3,
        "min_new_tokens": 12,
        "logit_bias": {END_ID: 12.0, 8: 9.0, 300: -100.0},
    },
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(
    "led", [*({"method": name} for name in REWRITING), {"method": "dola", "relative_top": 0.0}], ids=str
)
def test_penalties_and_bias_act_on_what_is_decoded(
    led: dict[str, Any], name: str, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    """On what the method made of the layers, which are compared without them."""
    replies = [
        logprob_client.generate(request_for(led, thinking_prompt(70), temperature, seed=4, **EDITS[name]))
        for temperature in (0.0, 0.8)
    ]
    outcomes = [agreed(against_layers(oracle, reply)) for reply in replies]
    if led["method"] == "confident":
        assert any(any(outcome.chosen) for outcome in outcomes), "the valley was never behind the final layer"
        faults = [against_layers(oracle, reply, Fault(no_edits=True)).faults for reply in replies]
        assert any(faults) or name == "at least so many tokens", "no chosen layer was edited"


def test_edits_of_all_methods_in_one_batch(logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Beside requests without any. (What penalties count in a batch, the engine's schedule decides: test_exact.py.)"""
    requests = []
    for i, (method, edits) in enumerate(product(METHODS, [EDITS["bias"], EDITS["at least so many tokens"], {}])):
        led = {"trace": True} if method == "led" else {"method": method}
        requests.append(request_for(led, thinking_prompt(700 + i, 8 + i), 0.8, seed=i, num_tokens=14, **edits))
    for reply in logprob_client.together(requests):
        method = reply.meta["led_params"]["method"]
        if method == "led":
            check(oracle, reply)
        elif method in REWRITING:
            agreed(against_layers(oracle, reply), 14)
        else:
            agreed(against_mixtures(oracle, reply)[0], 14)


BANNED = {"logit_bias": {**{i: -1e4 for i in range(VOCAB_SIZE) if i not in (8, 11, 222)}, 11: -100.0}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_banned_token_is_never_drawn(method: str, temperature: float, logprob_client: LogprobClient) -> None:
    """Of three tokens that are left, and with every other one weighed down a hundred times as much."""
    led: dict[str, Any] = {"method": method}
    if method == "led":
        led |= {"exploit": False, "phase": "all"}
    request = request_for(led, thinking_prompt(71), temperature, num_tokens=60, **BANNED)
    drawn = logprob_client.generate(request).output_ids
    assert set(drawn) <= {8, 222}


@pytest.mark.parametrize("method", REWRITING)
def test_sampled_tokens_come_from_the_seed(method: str, logprob_client: LogprobClient) -> None:
    def draw(seed: int) -> list[int]:
        return logprob_client.generate(request_for({"method": method}, thinking_prompt(6), 1.5, seed)).output_ids

    first = draw(5)
    assert draw(5) == first
    assert any(draw(seed) != first for seed in (6, 7))


# -- methods that mix embeddings ------------------------------------------------------------------------------------


def against_mixtures(oracle: Oracle, reply: Reply, fault: Fault = NO_FAULT) -> tuple[Outcome, SoftRun]:
    reported = distributions(reply)
    run = soft_run(oracle.model, case_of(reply.request, fault), reported, reply.output_ids)
    return compare_soft(run, reported, reply.output_ids), run


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("max_topk", [1, 3, 10, 32])
def test_soft_thinking(max_topk: int, temperature: float, logprob_client: LogprobClient, oracle: Oracle) -> None:
    led = {"method": "soft_thinking", "max_topk": max_topk}
    reply = logprob_client.generate(request_for(led, thinking_prompt(10, 45), temperature, num_tokens=32))
    outcome, run = against_mixtures(oracle, reply)
    agreed(outcome, 32)
    assert all(run.is_thinking)
    assert max_topk == 1 or sum(n > 1 for n in run.num_mixed) > 16, "hardly anything was mixed"


# Each at a temperature at which it leaves out some of the ten that would be mixed: at 4 a nucleus of 0.7 has them all.
FILTERS: list[tuple[float, dict[str, float]]] = [
    (FREE_TEMPERATURE, {"top_k": 3}),
    (1.5, {"top_p": 0.3}),
    (FREE_TEMPERATURE, {"min_p": 0.6}),
    (0.6, {"top_p": 0.7, "min_p": 0.05}),
    (FREE_TEMPERATURE, {"top_k": 4, "top_p": 0.8}),
]


@pytest.mark.parametrize(("temperature", "filters"), FILTERS)
def test_filters_first(
    temperature: float, filters: dict[str, float], logprob_client: LogprobClient, oracle: Oracle
) -> None:
    led = {"method": "soft_thinking", "filters_first": True}
    request = request_for(led, thinking_prompt(10, 45), temperature, num_tokens=32, filters=filters)
    reply = logprob_client.generate(request)
    agreed(against_mixtures(oracle, reply)[0], 32)
    later = Reply(replace(reply.request, led={**led, "filters_first": False}), reply.document)
    held(against_mixtures(oracle, later)[0], 8)


def test_soft_thinking_from_the_prompt_alone(logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Nothing is taken from the server's answer: every mixture follows from the recomputed ones before it."""
    request = request_for({"method": "soft_thinking"}, thinking_prompt(11), FREE_TEMPERATURE)
    reply = logprob_client.generate(request)
    run = free_run(oracle.model, case_of(request), NUM_TOKENS)
    agreed(compare_soft(run, distributions(reply), reply.output_ids))
    assert min(run.num_mixed) > 1


@pytest.mark.parametrize(
    ("method", "close_bias", "num_changes"), [("soft_thinking", 30.0, 1), ("soft_thinking_gumbel", 18.0, 4)]
)
def test_soft_thinking_phase_by_phase(
    method: str, close_bias: float, num_changes: int, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    """The markers win now and then: mixtures in the thinking phase, the engine's tokens and plain inputs outside."""
    bias = {OPEN_ID: 17.0, CLOSE_ID: close_bias}
    request = request_for({"method": method}, thinking_prompt(12), num_tokens=40, seed=3, logit_bias=bias)
    outcome, run = against_mixtures(oracle, logprob_client.generate(request))
    agreed(outcome, 40)
    assert sum(a != b for a, b in pairwise(run.is_thinking)) >= num_changes, "the phase hardly changed"


def test_soft_thinking_leaves_a_closed_prompt_alone(logprob_client: LogprobClient) -> None:
    prompt_ids = [OPEN_ID, *words(13, 12), CLOSE_ID, *words(14, 4)]
    plain = logprob_client.generate(request_for(False, prompt_ids))
    for method in ("soft_thinking", "soft_thinking_gumbel"):
        logprob_client.flush_cache()
        soft = logprob_client.generate(request_for({"method": method}, prompt_ids))
        assert soft.output_ids == plain.output_ids
        assert max(map(distance, distributions(soft), distributions(plain))) < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("led", [{}, {"gumbel_temperature": 2.0, "max_topk": 4}, {"gumbel_temperature": 0.1}])
def test_gumbel(led: dict[str, Any], temperature: float, logprob_client: LogprobClient, oracle: Oracle) -> None:
    request = request_for({"method": "soft_thinking_gumbel", **led}, thinking_prompt(15), temperature, seed=77)
    outcome, run = against_mixtures(oracle, logprob_client.generate(request))
    agreed(outcome)
    assert all(run.is_thinking)
    held(
        against_mixtures(oracle, Reply(request, logprob_client.generate(request).document), Fault(noise_shift=1))[0], 8
    )


def test_gumbel_noise_comes_from_the_seed(logprob_client: LogprobClient) -> None:
    def draw(seed: int | None) -> list[int]:
        led = {"method": "soft_thinking_gumbel"}
        return logprob_client.generate(request_for(led, thinking_prompt(16), 0.6, seed)).output_ids

    drawn = {seed: draw(seed) for seed in (1, 2, 3)}
    assert {seed: draw(seed) for seed in drawn} == drawn
    assert len({tuple(ids) for ids in drawn.values()}) == 3
    assert draw(None) != draw(None)


SOFT_FAULTS = {"plain inputs": Fault(plain_inputs=True), "wrong weights": Fault(weight_power=1.1)}


@pytest.mark.parametrize("name", SOFT_FAULTS)
def test_a_wrong_mixture_is_noticed(name: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    reply = logprob_client.generate(request_for({"method": "soft_thinking"}, thinking_prompt(17)))
    agreed(against_mixtures(oracle, reply)[0])
    held(against_mixtures(oracle, reply, SOFT_FAULTS[name])[0], NUM_TOKENS // 2)


@pytest.mark.parametrize("method", ["soft_thinking", "soft_thinking_gumbel"])
@pytest.mark.parametrize("length", [1, 4])
def test_cold_stop(length: int, method: str, logprob_client: LogprobClient, oracle: Oracle) -> None:
    """Every entropy counts as low: the phase is closed after `length` steps, and plain decoding follows."""
    led = {"method": method, "early_stop_length": length, "early_stop_entropy": 100.0}
    reply = logprob_client.generate(request_for(led, thinking_prompt(18, 50)))  # two chunks: the first must not count
    assert reply.output_ids.index(CLOSE_ID) == length - 1
    outcome, run = against_mixtures(oracle, reply)
    agreed(outcome)
    assert run.is_thinking[: length + 1] == [True] * length + [False]


def test_cold_stop_counts_steps_in_a_row(logprob_client: LogprobClient, oracle: Oracle) -> None:
    """A threshold among the entropies that occur: high ones start the count again."""
    prompt_ids = thinking_prompt(19)
    free = logprob_client.generate(request_for({"method": "soft_thinking"}, prompt_ids, num_tokens=32))
    entropies = [float(-(np.exp(step) * np.maximum(step, -700)).sum()) for step in distributions(free)]
    threshold = float(np.median(entropies))
    lengths = range(1, 6)
    first = {
        n: next((i for i in range(n - 1, 32) if max(entropies[i - n + 1 : i + 1]) < threshold), None) for n in lengths
    }
    length, stop = next((n, i) for n, i in first.items() if i is not None and n > 1 and i >= n)
    led = {"method": "soft_thinking", "early_stop_length": length, "early_stop_entropy": threshold + 1e-4}
    reply = logprob_client.generate(request_for(led, prompt_ids, num_tokens=32))
    assert reply.output_ids[: stop + 1] == [*free.output_ids[:stop], CLOSE_ID]
    agreed(against_mixtures(oracle, reply)[0], 32)


# -- all of them at once --------------------------------------------------------------------------------------------


def one_of_each(temperature: float) -> list[Request]:
    """Sixteen requests, no two alike. Rows that the engine samples itself have no seed, and are greedy."""
    settings: list[Any] = [
        None,
        False,
        True,
        {"depth": 3, "top_k": 5},
        {"method": "none"},
        {"method": "dola"},
        {"method": "dola", "layers": "high"},
        {"method": "confident"},
        {"method": "confident", "num_layers": 4},
        {"method": "sled"},
        {"method": "sled", "evolution_rate": 1.0, "evolution_scale": 40},
        {"method": "soft_thinking"},
        {"method": "soft_thinking", "max_topk": 3},
        {"method": "soft_thinking_gumbel"},
        {"method": "soft_thinking_gumbel", "max_topk": 20, "gumbel_temperature": 1.0},
        {"method": "soft_thinking", "early_stop_length": 3, "early_stop_entropy": 100.0},
    ]
    return [
        request_for(
            {"trace": False} if led is None else led,
            thinking_prompt(100 + i, 8 + 5 * i),
            temperature if led not in (False, {"method": "none"}) else 0.0,
            seed=i,
            num_tokens=12 + i % 3,
        )
        for i, led in enumerate(settings)
    ]


def warm(logprob_client: LogprobClient, requests: list[Request]) -> None:
    """Keys and values of prompts are taken from the cache in both runs: only decoding is compared."""
    logprob_client.flush_cache()
    for request in requests:
        logprob_client.generate(Request(request.prompt_ids, Query(0.0), 1, led=False))


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_all_methods_at_once_equal_each_alone(temperature: float, logprob_client: LogprobClient) -> None:
    """Bit for bit: tokens, and every log-probability of the vocabulary at every step."""
    requests = one_of_each(temperature)
    warm(logprob_client, requests)
    alone = [logprob_client.generate(request) for request in requests]
    together = logprob_client.together(requests)
    assert [reply.output_ids for reply in together] == [reply.output_ids for reply in alone]
    for reply, other in zip(alone, together, strict=True):
        if reply.request.query.temperature == temperature:
            assert reply.meta["output_token_ids_logprobs"] == other.meta["output_token_ids_logprobs"], reply.request.led
        else:  # greedy rows beside sampled ones: the engine takes log(softmax) instead of log_softmax
            assert max(map(distance, distributions(reply), distributions(other))) < 1e-4
    assert logprob_client.get("/led/info")["step_failures"] == 0


def test_a_crowd_of_methods_against_the_recomputations(logprob_client: LogprobClient, oracle: Oracle) -> None:
    logprob_client.flush_cache()
    for reply in logprob_client.together(one_of_each(0.6)):
        num_tokens, method = reply.request.num_tokens, reply.meta["led_params"]["method"]
        if method in REWRITING:
            agreed(against_layers(oracle, reply), num_tokens)
        elif method.startswith("soft"):
            agreed(against_mixtures(oracle, reply)[0], num_tokens)


# -- sampling masks -------------------------------------------------------------------------------------------------


MASKED: list[Any] = [
    *({"method": name} for name in REWRITING), {"method": "soft_thinking"}, {"trace": True}, False,
]  # fmt: skip


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_sampling_masks_of_every_method(temperature: float, seed: int | None, logprob_client: LogprobClient) -> None:
    """In one batch, with phases that end: of the engine's draw from what a method rewrote, or of none at all."""
    bias = {OPEN_ID: 9.0, CLOSE_ID: 9.0}
    requests = [
        request_for(led, thinking_prompt(90 + i), temperature, seed, logit_bias=bias, filters={"top_k": 6}, mask=mode)
        for i, led in enumerate(MASKED)
        for mode in ("selected", "support")
    ]
    for reply in logprob_client.together(requests):
        expected = masks_recompute.policies(reply, distributions(reply))
        faults = masks_recompute.faults(reply.meta, reply.output_ids, expected, reply.request.mask or "")
        assert not faults, f"{reply.request.led}: " + "\n".join(faults[:5])


@pytest.mark.parametrize("stream", [True, False])
def test_a_mask_of_gumbel_noise_is_refused(stream: bool, methods_server: Server) -> None:
    request = request_for(
        {"method": "soft_thinking_gumbel"}, thinking_prompt(95), filters={"top_k": 6}, mask="selected"
    )
    answer = httpx.post(f"{methods_server.url}/generate", json=request.body() | {"stream": stream}, timeout=60)
    assert answer.status_code == 400 and "soft_thinking_gumbel" in answer.text, answer.text


# -- prefix cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["soft_thinking", "soft_thinking_gumbel"])
@pytest.mark.parametrize("led", [False, {"trace": True}])
def test_no_request_reuses_soft_keys_and_values(
    led: Any, method: str, logprob_client: LogprobClient, oracle: Oracle
) -> None:
    logprob_client.flush_cache()
    prompt_ids = thinking_prompt(30, 40)
    soft = logprob_client.generate(request_for({"method": method}, prompt_ids))
    follow_up = request_for(led, [*prompt_ids, *soft.output_ids, *words(31, 3)])
    after_soft = logprob_client.generate(follow_up)
    assert after_soft.meta["cached_tokens"] <= len(prompt_ids)
    again = logprob_client.generate(follow_up)
    assert again.meta["cached_tokens"] >= len(follow_up.prompt_ids) - 1, "a plain request's own keys are reused"
    logprob_client.flush_cache()
    cold = logprob_client.generate(follow_up)
    assert cold.meta["cached_tokens"] == 0
    assert after_soft.output_ids == again.output_ids == cold.output_ids
    assert max(map(distance, distributions(after_soft), distributions(cold))) < 1e-4
    if led:
        check(oracle, after_soft)
        return
    layers = forward(oracle.model, follow_up.prompt_ids + after_soft.output_ids)
    expected = layers.final_logits[len(follow_up.prompt_ids) - 1 : -1]
    errors = [
        distance(reported, log_softmax(z)) for reported, z in zip(distributions(after_soft), expected, strict=True)
    ]
    assert max(errors) < TOLERANCE


def test_a_soft_request_reads_the_cache_and_adds_nothing(logprob_client: LogprobClient, oracle: Oracle) -> None:
    logprob_client.flush_cache()
    prompt_ids = thinking_prompt(32, 70)  # three chunks
    soft = request_for({"method": "soft_thinking"}, prompt_ids)
    first, second = logprob_client.generate(soft), logprob_client.generate(soft)
    assert first.meta["cached_tokens"] == second.meta["cached_tokens"] == 0
    logprob_client.generate(request_for(False, prompt_ids))
    third = logprob_client.generate(soft)
    assert third.meta["cached_tokens"] >= len(prompt_ids) - 1
    for reply in (first, second, third):
        agreed(against_mixtures(oracle, reply)[0])
    assert first.output_ids == second.output_ids == third.output_ids


def test_a_slot_is_handed_on_without_its_mixture(logprob_client: LogprobClient) -> None:
    """Soft requests that end inside their thought leave every slot with a mixture, which no next owner may see."""
    plain: Any = [request_for(False, words(60 + i, 20)) for i in range(NUM_SLOTS)]
    before = logprob_client.together(plain)
    logprob_client.together(
        [request_for({"method": "soft_thinking"}, thinking_prompt(80 + i), num_tokens=4) for i in range(2 * NUM_SLOTS)]
    )
    logprob_client.flush_cache()
    after = logprob_client.together(plain)
    for one, other in zip(before, after, strict=True):
        assert one.output_ids == other.output_ids
        assert max(map(distance, distributions(one), distributions(other))) < 1e-4


# -- what is reported and refused -----------------------------------------------------------------------------------


ECHOES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dola": ({"layers": "high"}, {"layers": "high", "relative_top": 0.1}),
    "confident": ({}, {"num_layers": 10, "select_method": "trough", "p": 1.0}),
    "sled": ({"evolution_rate": 1.5}, {"evolution_rate": 1.5, "evolution_scale": 10}),
    "soft_thinking": (
        {"max_topk": 5},
        {"max_topk": 5, "early_stop_entropy": 0.01, "early_stop_length": 256, "filters_first": False},
    ),
    "soft_thinking_gumbel": (
        {"early_stop_length": 7},
        {
            "max_topk": 10,
            "early_stop_entropy": 0.01,
            "early_stop_length": 7,
            "filters_first": False,
            "gumbel_temperature": 0.5,
        },
    ),
    "none": ({}, {}),
}


@pytest.mark.parametrize("method", ECHOES)
def test_applied_parameters_are_echoed(method: str, logprob_client: LogprobClient) -> None:
    query, applied = ECHOES[method]
    before = logprob_client.get("/led/info")["counters"]
    meta = logprob_client.generate(request_for({"method": method, **query}, thinking_prompt(40), num_tokens=4)).meta
    assert meta["led_params"] == {"method": method, **applied}
    assert not any(key.startswith("led_") for key in meta if key not in ("led_params", "led_stats"))
    after = logprob_client.get("/led/info")["counters"]
    assert after["requests"].get(method, 0) == before["requests"].get(method, 0) + 1
    assert after["led_tokens"] == before["led_tokens"], "another method's tokens are no LED tokens"
    assert after["fallbacks"] == before["fallbacks"]


def test_led_stays_the_default(logprob_client: LogprobClient, oracle: Oracle) -> None:
    body = request_for(None, thinking_prompt(41), 0.6).body()
    del body["sampling_params"]["custom_params"]
    meta = logprob_client.post("/generate", body)["meta_info"]
    assert meta["led_params"]["method"] == "led"
    assert meta["led_stats"]["led_tokens"] == NUM_TOKENS
    check(oracle, logprob_client.generate(Request(thinking_prompt(41))))  # with other layers captured beside its own


def test_the_log_and_info_name_methods_layers_and_memory(logprob_client: LogprobClient, methods_server: Server) -> None:
    info = logprob_client.get("/led/info")
    assert info["methods"] == ["none", *METHODS]
    assert info["captured_layers"] == list(range(1, 12))
    rows = -(-(NUM_SLOTS + 2) // 16) * 16
    assert (
        info["capture_buffer_bytes"] == 11 * rows * 128 * 4 == info["memory"]["capture_buffer"]
    )  # layers, hidden size, float32
    said = methods_server.log.read_text(errors="replace")
    assert f"methods none, {', '.join(METHODS)}; captured layers {list(range(1, 12))}\n" in said
    # Of each row 32 ids and weights, a flag and a count.
    assert info["memory"]["soft_tables"] == rows * (32 * 12 + 1 + 8)
    assert f"batches of up to {rows} rows (capture buffer 0.2 MB, " in said and ", soft tables 0.0 MB, " in said


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown method": ({"method": "magic"}, ("method", "magic", *METHODS, "none")),
    "no method": ({"method": None}, ("method", "None", *METHODS)),
    "LED's key": ({"method": "dola", "depth": 4}, ("depth", "belongs to method led", "'dola'", "relative_top")),
    "DoLa's key": ({"method": "confident", "layers": "low"}, ("layers", "belongs to method dola", "num_layers")),
    "Gumbel's key": (
        {"method": "soft_thinking", "gumbel_temperature": 1.0},
        ("gumbel_temperature", "belongs to method soft_thinking_gumbel", "max_topk"),
    ),
    "soft key to LED": ({"max_topk": 3}, ("max_topk", "soft_thinking and soft_thinking_gumbel", "'led'")),
    "key to none": ({"method": "none", "num_layers": 3}, ("num_layers", "belongs to method confident")),
    "range of layers": ({"method": "dola", "layers": "middle"}, ("layers", "middle", "low, high")),
    "range of relative_top": ({"method": "dola", "relative_top": 1.5}, ("relative_top", "[0, 1]", "1.5")),
    "range of num_layers": ({"method": "confident", "num_layers": 13}, ("num_layers", "13", "[2, ")),
    "range of evolution_rate": ({"method": "sled", "evolution_rate": 10.5}, ("evolution_rate", "[0, 10]", "10.5")),
    "range of evolution_scale": ({"method": "sled", "evolution_scale": 0}, ("evolution_scale", "[1, 256]", "0")),
    "range of max_topk": ({"method": "soft_thinking", "max_topk": 33}, ("max_topk", "[1, 32]", "33")),
    "type": ({"method": "soft_thinking", "early_stop_length": True}, ("early_stop_length", "True")),
}


def refused(url: str, led: Any) -> str:
    answer = httpx.post(f"{url}/generate", json=request_for(led, thinking_prompt(42), num_tokens=2).body(), timeout=60)
    assert answer.status_code == 400, answer.text
    return answer.text


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, methods_server: Server) -> None:
    led, named = REFUSED[name]
    text = refused(methods_server.url, led)
    assert all(word in text for word in named), text
