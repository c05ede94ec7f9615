"""Requests that every topology answers as one server on one rank does, and the topologies."""

from dataclasses import dataclass, field

from led_sglang.testing import Reply
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Request, thinking_prompt, words
from tests.server.recompute import Query

CHECKPOINT = "qwen3_moe_even"
LIMITS = ("--max-total-tokens", "4096", "--chunked-prefill-size", "64", "--led-max-depth", "8")
LONG = 130  # tokens of a prompt that is cut into chunks
PARAMETERS = (
    Query(),
    Query(latent_norm=True),
    Query(temperature=0.0),
    Query(exploit=False, temperature=1.0),
    Query(phase="all", top_k=3),
    Query(latent_offset=1, normalize_layers=True),
)
FLICKERING = Query(logit_bias={OPEN_ID: 9.0, CLOSE_ID: 14.0})  # the phase opens and closes in the output


def together() -> list[Request]:
    """What is sent at once; every one has its trace."""
    open_prompts = [
        Request(thinking_prompt(700 + i, 9 + 4 * i), query, 8 + i, 30 + i) for i, query in enumerate(PARAMETERS)
    ]
    return [
        *open_prompts,
        Request([OPEN_ID, *words(720, 9), CLOSE_ID], Query(temperature=0.0), 9, seed=3),
        Request(thinking_prompt(721, LONG), Query(), 10, seed=4),
        Request([*words(722, 6), OPEN_ID], FLICKERING, 24, seed=5),
    ]


def alone() -> Request:
    """Sent while nothing else is served: ranks that have no request of their own are idle."""
    return Request(thinking_prompt(723, 14), Query(temperature=1.0), 12, seed=6)


def several() -> Request:
    """Sent as n samples."""
    return Request(thinking_prompt(724, 12), Query(temperature=1.0), 10, seed=7)


@dataclass(frozen=True)
class Topology:
    """Arguments of a server, and its environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0,1|0,1"}
FOUR_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1|0|1"}
STAGES = {"SGLANG_PP_LAYER_PARTITION": "2,10"}
PATIENT = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "400"}  # a busy machine imports SGLang for longer than 10 s

TOPOLOGIES: dict[str, Topology] = {
    "token ids": Topology(("--skip-tokenizer-init",)),
    "tokenizer workers": Topology(("--tokenizer-worker-num", "2"), PATIENT),
    # With idle ranks, and batches that ranks fill up to as many rows; the older spelling, and the newer.
    "dp attention": Topology(
        ("--tp-size", "2", "--dp-size", "2", "--enable-dp-attention", "--enable-dp-lm-head"), TWO_RANKS
    ),
    "dp attention over pairs": Topology(("--tp-size", "4", "--attn-dp-size", "2", "--enable-dp-lm-head"), FOUR_RANKS),
    "expert parallelism": Topology(("--tp-size", "2", "--ep-size", "2"), TWO_RANKS),
    "experts and dp attention": Topology(
        ("--tp-size", "2", "--ep-size", "2", "--attn-dp-size", "2", "--enable-dp-lm-head"), TWO_RANKS
    ),
    # Eight layers are captured, so the last stage needs nine at least.
    "pipeline": Topology(("--pp-size", "2"), TWO_RANKS | STAGES),
    "pipeline of pairs": Topology(("--tp-size", "2", "--pp-size", "2"), FOUR_RANKS | STAGES),
}


def sums(replies: list[Reply]) -> dict[str, int]:
    """What the server's counters must have grown by."""
    return {
        name: sum(reply.meta["led_stats"][name] for reply in replies)
        for name in ("led_tokens", "thinking_tokens", "explored_tokens", "fallbacks")
    }
