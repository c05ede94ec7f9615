"""Stock speculative decoding on the CPU platform says what the same server says without it, in fewer steps.

With `--enable-deterministic-inference` a token's numbers do not depend on what is computed beside it, so greedy texts
and all log-probabilities are equal bit for bit, whatever was drafted. How much was accepted shows whether drafts are
what the draft model means: a draft that reads the wrong cache or hidden states is refused, not noticed otherwise.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from led_sglang.embedded import MODEL_DIR, draft, tasks
from tests.server import checkpoints, drafts
from tests.server.api import TOKENIZER, joined, streamed, thinking_prompt, wait_idle
from tests.server.clients import words
from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(1200)]


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


PROMPTS = [
    ids_of(thinking_prompt(problem.question))
    for task in tasks.TASK_NAMES
    for problem in tasks.generate(task, "held_out", 6, seed=7)
]
GREEDY = {"temperature": 0, "max_new_tokens": 160}
TREE = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "3", "--speculative-num-draft-tokens", "8")


@dataclass(frozen=True)
class Algorithm:
    arguments: tuple[str, ...]
    per_verify: float  # tokens that a verification yields at least, over PROMPTS; a draft of nothing has 1
    draft: Callable[[Path], Path] | None = None
    is_repeatable: bool = True  # drafts do not depend on earlier requests


ALGORITHMS = {
    "NGRAM tree": Algorithm(("NGRAM",), 1.8, is_repeatable=False),
    "STANDALONE chain": Algorithm(("STANDALONE",), 2.6, draft.save),
    "EAGLE chain": Algorithm(("EAGLE",), 1.5, drafts.eagle_head),
    "EAGLE3 tree": Algorithm(("EAGLE3", *TREE), 1.6, drafts.eagle3_head),
}


@pytest.fixture(scope="module")
def plain(logs: Path) -> Iterator[httpx.Client]:
    """The server without speculation."""
    yield from serve(logs / "plain.log")


def serve(log: Path, *arguments: str) -> Iterator[httpx.Client]:
    with (
        Server("--led", "disabled", "--enable-deterministic-inference", *arguments, log=log) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        yield client


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return ALGORITHMS[request.param]


@pytest.fixture(scope="module")
def client(algorithm: Algorithm, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    name, *more = algorithm.arguments
    path = () if algorithm.draft is None else (str(algorithm.draft(tmp_path_factory.mktemp("drafts") / "draft")),)
    named = ("--speculative-draft-model-path", *path) if path else ()
    yield from serve(logs / f"{name}.log", "--speculative-algorithm", name, *more, *named)


def ask(client: httpx.Client, prompt: Any, sampling: Any, **more: Any) -> Any:
    body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 3} | more
    answer = client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: Any) -> Any:
    """Everything that must be equal, bit for bit."""
    if isinstance(answer, list):
        return [said(each) for each in answer]
    kept = ("output_token_logprobs", "output_top_logprobs", "finish_reason", "completion_tokens", "cached_tokens")
    return {"text": answer["text"], "ids": answer["output_ids"]} | {key: answer["meta_info"][key] for key in kept}


def together(client: httpx.Client) -> Any:
    return ask(client, PROMPTS, GREEDY)


def alone(client: httpx.Client) -> Any:
    return [ask(client, prompt, GREEDY) for prompt in PROMPTS[::5]]


def beside_sampled_rows(client: httpx.Client) -> Any:
    sampled = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "max_new_tokens": 100, "sampling_seed": 3}
    return ask(client, PROMPTS, [sampled if i % 2 else GREEDY for i in range(len(PROMPTS))])[::2]


def biased(client: httpx.Client) -> Any:
    bias = {str(ids_of(word)[0]): 3.0 for word in (" so", " then")}
    return ask(client, PROMPTS[:4], {**GREEDY, "logit_bias": bias})


def short(client: httpx.Client) -> Any:
    return ask(client, PROMPTS[:8], [{**GREEDY, "max_new_tokens": limit} for limit in (1, 2, 3, 4, 5, 6, 7, 8)])


def stopped(client: httpx.Client) -> Any:
    """By strings that begin or end within a run of accepted tokens, and by tokens."""
    stops = ({"stop": ["="]}, {"stop": [" =", ","], "no_stop_trim": True}, {"stop": ["</think>"]})
    ids = [{"stop_token_ids": ids_of(text)} for text in (" =", ",")]
    sampling = [{**GREEDY, **stop} for stop in (*stops, *ids)]
    return ask(client, PROMPTS[: len(sampling)], sampling)


def several(client: httpx.Client) -> Any:
    return ask(client, PROMPTS[0], {**GREEDY, "n": 3})


def constrained(client: httpx.Client) -> Any:
    pattern = r"( \d+ [+*-] \d+ = \d+,){3} so"
    return ask(client, PROMPTS[:4], {**GREEDY, "regex": pattern})


QUESTIONS = (together, alone, beside_sampled_rows, biased, short, stopped, several, constrained)


@pytest.fixture(scope="module")
def expected(plain: httpx.Client) -> dict[str, Any]:
    return {question.__name__: said(from_cold(plain, question)) for question in QUESTIONS}


def from_cold(client: httpx.Client, question: Callable[[httpx.Client], Any]) -> Any:
    wait_idle(client)
    return question(client)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_is_said(
    question: Callable[[httpx.Client], Any], expected: dict[str, Any], client: httpx.Client
) -> None:
    answers = from_cold(client, question)
    assert said(answers) == expected[question.__name__]


def test_drafts_are_accepted_and_counted(client: httpx.Client, algorithm: Algorithm) -> None:
    metas = [answer["meta_info"] for answer in from_cold(client, together)]
    for meta in metas:
        verified = meta["spec_verify_ct"]
        histogram = meta["spec_correct_drafts_histogram"]
        assert sum(histogram) == verified
        assert sum(count * number for number, count in enumerate(histogram)) == meta["spec_num_correct_drafts"]
        assert meta["spec_accept_length"] == pytest.approx(meta["completion_tokens"] / verified, rel=0.2)
    tokens, verified = (sum(meta[key] for meta in metas) for key in ("completion_tokens", "spec_verify_ct"))
    assert tokens / verified > algorithm.per_verify, tokens / verified


def test_without_speculation_nothing_is_counted(plain: httpx.Client) -> None:
    assert not [key for key in ask(plain, PROMPTS[0], GREEDY)["meta_info"] if key.startswith("spec_")]


def test_a_stream_joins_to_the_same(expected: dict[str, Any], client: httpx.Client) -> None:
    wait_idle(client)
    body = {"input_ids": PROMPTS[0], "sampling_params": GREEDY}
    chunks = streamed(client, body)
    [whole] = joined(chunks)
    wanted = expected["alone"][0]
    assert (whole["text"], whole["output_ids"]) == (wanted["text"], wanted["ids"])
    assert 2 < len(chunks) < len(whole["output_ids"]), "a chunk holds what a verification accepted"


def test_a_seed_gives_the_same_sample_alone_and_in_a_crowd(client: httpx.Client, algorithm: Algorithm) -> None:
    if not algorithm.is_repeatable:
        pytest.skip("what NGRAM drafts depends on what others said before, and a sample on what is drafted")
    settings = [{"temperature": 0.9, "max_new_tokens": 60, "sampling_seed": i} for i in range(len(PROMPTS))]
    crowd = from_cold(client, partial(ask, prompt=PROMPTS, sampling=settings))
    for place in (1, 7):
        one = from_cold(client, partial(ask, prompt=PROMPTS[place], sampling=settings[place]))
        assert said(one) == said(crowd[place])
        other = from_cold(
            client, partial(ask, prompt=PROMPTS[place], sampling={**settings[place], "sampling_seed": 77})
        )
        assert other["output_ids"] != one["output_ids"]


NUM_SAMPLES, NUM_TOKENS = 600, 3
FALSE_ALARM = 1e-6 / len(ALGORITHMS)


@pytest.fixture(scope="module")
def distribution() -> Callable[[tuple[int, ...]], np.ndarray[Any, Any]]:
    """The next token's probabilities behind PROMPTS[0] and some tokens, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float64).eval()
    found: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def probs(tokens: tuple[int, ...]) -> np.ndarray[Any, Any]:
        if tokens not in found:
            with torch.no_grad():
                found[tokens] = model(torch.tensor([[*PROMPTS[0], *tokens]])).logits[0, -1].softmax(-1).numpy()
        return found[tokens]

    return probs


def test_samples_have_the_models_distribution(
    client: httpx.Client, distribution: Callable[[tuple[int, ...]], np.ndarray[Any, Any]]
) -> None:
    """The first token is the engine's own; the second and third are verified. Runs by their exact probability."""
    settings = [{"temperature": 1.0, "max_new_tokens": NUM_TOKENS, "sampling_seed": i} for i in range(NUM_SAMPLES)]
    question = partial(ask, prompt=[PROMPTS[0]] * NUM_SAMPLES, sampling=settings, return_logprob=False)
    answers = from_cold(client, question)
    runs = [tuple(answer["output_ids"]) for answer in answers]
    for length in range(1, NUM_TOKENS + 1):
        before = Counter(run[: length - 1] for run in runs)
        seen, due = Counter(run[:length] for run in runs), Counter[Any]()
        for start, count in before.items():
            for token, mass in enumerate(distribution(start)):
                due[(*start, token)] += count * mass
        often = [run for run, number in due.items() if number >= 8]
        observed = [*(seen[run] for run in often), NUM_SAMPLES - sum(seen[run] for run in often)]
        awaited = [*(due[run] for run in often), NUM_SAMPLES - sum(due[run] for run in often)]
        assert stats.chisquare(observed, awaited).pvalue > FALSE_ALARM / NUM_TOKENS, (length, observed, awaited)


def test_nextn_drafts_with_the_models_own_layer(logs: Path, tmp_path: Path) -> None:
    """A MiMo of random weights whose extra layer knows the answers by heart; the answers are transformers'."""
    folder = checkpoints.build("mimo", tmp_path / "mimo")
    prompts, model = [words(seed, 8 + seed) for seed in range(4)], checkpoints.load(folder)
    texts = [list(prompt) for prompt in prompts]
    for text in texts:
        for _ in range(40):
            with torch.no_grad():
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    drafts.add_mimo_mtp(folder, texts)
    served = ("--model-path", str(folder), "--dtype", "float32", "--trust-remote-code", "--context-length", "2048")
    named = ("--speculative-algorithm", "NEXTN", "--speculative-draft-model-path", str(folder))
    for client in serve(logs / "nextn.log", *served, *named):
        answers = ask(client, prompts, {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True})
        assert [answer["output_ids"] for answer in answers] == [text[-40:] for text in texts]
        assert sum(answer["meta_info"]["spec_verify_ct"] for answer in answers) < 4 * 40 / 2.5
