"""Requests that several files of this folder send: of every parameter, of every thinking state, of both at once."""

from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Request, thinking_prompt, words
from tests.server.recompute import Query

PARAMETERS: dict[str, Query] = {
    "the paper's defaults": Query(),
    "depth 1": Query(depth=1),
    "depth 2": Query(depth=2),
    "depth 12, the whole model": Query(depth=12),
    "one candidate": Query(top_k=1),
    "three candidates": Query(top_k=3),
    "sixteen candidates": Query(top_k=16),
    "final norm on the latents": Query(latent_norm=True),
    "layers normalised one by one": Query(normalize_layers=True),
    "no exploit branch": Query(exploit=False),
    "the released code's layers": Query(latent_offset=1),
    "depth 1 of the released code": Query(latent_offset=1, depth=1),
    "min_p": Query(min_p=0.2),
    "min_p with many candidates": Query(min_p=0.02, top_k=16, normalize_layers=True),
    "temperature 0.3": Query(temperature=0.3),
    "temperature 1": Query(temperature=1.0),
    "greedy": Query(temperature=0.0),
    "greedy without exploit branch": Query(temperature=0.0, exploit=False, depth=5),
    "all ablations": Query(latent_norm=True, normalize_layers=True, exploit=False, latent_offset=1, top_k=5, depth=11),
}
PROMPTS: dict[str, tuple[list[int], Query]] = {
    "no marker at all": (words(50, 20), Query()),
    "no marker, exploring in all phases": (words(50, 20), Query(phase="all")),
    "thinking closed": ([*words(51, 8), OPEN_ID, *words(52, 8), CLOSE_ID, *words(53, 3)], Query()),
    "thinking closed, exploring in all phases": ([OPEN_ID, *words(52, 8), CLOSE_ID], Query(phase="all")),
    "closed and opened again": ([OPEN_ID, *words(54, 9), CLOSE_ID, *words(55, 9), OPEN_ID, *words(56, 4)], Query()),
    "only a marker": ([OPEN_ID], Query()),
    "opened twice": ([OPEN_ID, OPEN_ID, *words(57, 5)], Query()),
    # A bias that the markers often win: the phase opens and closes in the output, several times.
    "phase changes in the output": ([*words(58, 6), OPEN_ID], Query(logit_bias={OPEN_ID: 9.0, CLOSE_ID: 14.0})),
    "opened by the model": (words(59, 6), Query(logit_bias={OPEN_ID: 16.0, CLOSE_ID: 15.0})),
}


def mixed_batch() -> list[Request]:
    queries = [*PARAMETERS.values()][:12]
    traced = [Request(thinking_prompt(200 + i, 10 + 3 * i), a, 10 + i, seed=i) for i, a in enumerate(queries)]
    closed = [Request([OPEN_ID, *words(300, 9), CLOSE_ID], Query(), 14, seed=3)]
    greedy = [Request(thinking_prompt(301), Query(temperature=0.0), 18, seed=None)]
    off = [Request(thinking_prompt(302 + i), Query(temperature=0.0), 15, seed=None, led=False) for i in range(2)]
    return traced + closed + greedy + off
