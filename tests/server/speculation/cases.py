"""Requests whose answers are compared with and without speculation, and the servers that speculate."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoTokenizer

from led_sglang.embedded import MODEL_DIR, tasks
from led_sglang.testing import Reply
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Request
from tests.server.exact.cases import PARAMETERS

NUM_REQUESTS = 200
TEMPERATURES = (0.0, 0.6, 1.0)
DETERMINISTIC = ("--enable-deterministic-inference", "--random-seed", "1")
# The phase closes and opens again inside of drafts, and at last tokens of runs.
FLICKER = {OPEN_ID: 15.0, CLOSE_ID: 17.0}


@dataclass(frozen=True)
class Case:
    """A server that speculates; draft: of `drafts`, by name; served: what its one-token twin is started with too."""

    algorithm: str
    arguments: tuple[str, ...] = ()
    draft: str | None = None
    served: tuple[str, ...] = ()
    architecture: str | None = None  # of `checkpoints`; None = the embedded model
    recomputes: bool = False  # keys and values of a text are computed again, in batches of other shapes

    @property
    def environment(self) -> dict[str, str]:
        return threads_of(self.served) | ({"SGLANG_TEST_RETRACT": "1"} if self.recomputes else {})


def threads_of(served: tuple[str, ...]) -> dict[str, str]:
    """Two ranks share two cores."""
    return {"SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"} if "--tp" in served else {}


def shape(num_steps: int, topk: int, num_draft_tokens: int) -> tuple[str, ...]:
    values = {
        "--speculative-num-steps": num_steps,
        "--speculative-eagle-topk": topk,
        "--speculative-num-draft-tokens": num_draft_tokens,
    }
    return tuple(word for flag, value in values.items() for word in (flag, str(value)))


def ngram(num_draft_tokens: int, breadth: int) -> tuple[str, ...]:
    return "--speculative-num-draft-tokens", str(num_draft_tokens), "--speculative-ngram-max-bfs-breadth", str(breadth)


CASES: dict[str, Case] = {
    "NGRAM chain": Case("NGRAM", ngram(6, 1)),
    "NGRAM tree": Case("NGRAM", ngram(12, 4)),
    "STANDALONE chain": Case("STANDALONE", shape(3, 1, 4), "draft"),
    "STANDALONE tree": Case("STANDALONE", shape(3, 3, 8), "draft"),
    "EAGLE chain": Case("EAGLE", shape(3, 1, 4), "eagle"),
    "EAGLE tree": Case("EAGLE", shape(3, 3, 8), "eagle"),
    "EAGLE3 chain": Case("EAGLE3", shape(3, 1, 4), "eagle3"),
    "EAGLE3 tree": Case("EAGLE3", shape(3, 3, 8), "eagle3"),
    "NEXTN chain": Case("NEXTN", shape(3, 1, 4), "nextn", architecture="mimo"),
    "NEXTN tree": Case("NEXTN", shape(3, 3, 8), "nextn", architecture="mimo"),
    "NGRAM tree, chunks and retractions": Case(
        "NGRAM", (*ngram(6, 2), "--chunked-prefill-size", "32"), recomputes=True
    ),
    "STANDALONE chain, two ranks": Case("STANDALONE", shape(3, 1, 4), "draft", served=("--tp", "2")),
}


def prompts(number: int) -> list[list[int]]:
    """Questions as the chat template renders them: the generation prompt opens a thought."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    rendered = []
    for problem in tasks.mixed("held_out", seed=3, arithmetic_share=0.5):
        if len(rendered) == number:
            break
        messages = [{"role": "user", "content": problem.question}]
        ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        rendered.append(list(ids))
    return rendered


def requests() -> list[Request]:
    """Every parameter at every temperature; one in five changes its phase all the time, some end at a stop string."""
    queries = list(PARAMETERS.values())
    made = []
    for i, prompt_ids in enumerate(prompts(NUM_REQUESTS)):
        query = queries[i % len(queries)]
        if i >= len(queries):
            query = replace(query, temperature=TEMPERATURES[i % 3])
        if i % 5 == 0:
            query = replace(query, logit_bias=FLICKER, phase="all" if i % 2 else "think")
        sampling: dict[str, Any] = {"stop": ["="]} if i % 7 == 3 else {}
        made.append(
            Request(
                prompt_ids, query, 40, 1000 + i, return_logprob=i % 2 == 0, ignore_eos=i % 3 == 0, sampling=sampling
            )
        )
    return made


EXACT = ("led_think", "led_explored", "led_depth", "led_candidates", "led_params", "finish_reason")
TOLERANCE = 1e-4  # of numbers whose keys and values were computed again


def differences(expected: Reply, found: Reply, tolerance: float = 0.0) -> list[str]:
    """What the same request was answered otherwise: tokens, counts, and all that is reported of them.

    tolerance: absolute, of confidences (probabilities) and log-probabilities (nats); everything else is equal.
    """
    names = [name for name in EXACT if expected.meta.get(name) != found.meta.get(name)]
    if expected.output_ids != found.output_ids:
        pairs = zip(expected.output_ids, found.output_ids, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), "the end")
        names.append(f"token {at}")
    if expected.meta["led_stats"] != found.meta["led_stats"]:
        names.append("led_stats")
    for name, numbers in (("led_confidence", confidences), ("logprobs", logprobs)):
        first, second = numbers(expected), numbers(found)
        if len(first) != len(second) or any(abs(a - b) > tolerance for a, b in zip(first, second, strict=True)):
            names.append(name)
    return names


def confidences(reply: Reply) -> list[float]:
    """One a token; -1 outside of the phase."""
    return [-1.0 if value is None else value for value in reply.meta["led_confidence"]]


def logprobs(reply: Reply) -> list[float]:
    return [logprob for logprob, _, _ in reply.meta.get("output_token_logprobs") or ()]
