"""Nodes outside the phase of requests that named a seed are drawn as the sampler draws one row."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.integration.scheduler.speculation import draws
from led_sglang.ops.types import Filters
from tests.unit.integration.scheduler.speculation.world import BACKENDS, V

NUM_REQUESTS, NUM_NODES = 5, 4
NUM_ROWS = NUM_REQUESTS * NUM_NODES


def inputs_of(backend: str, seed: int, **info: Any) -> Any:
    rng = torch.Generator().manual_seed(seed)
    chosen = BACKENDS[backend]
    row_inputs = SimpleNamespace(
        active=torch.rand(NUM_ROWS, generator=rng) < 0.4,
        token_uniform=torch.rand(NUM_ROWS, generator=rng, dtype=torch.float64),
        positions=torch.arange(NUM_ROWS) + 50,
    )
    values = {
        "temperatures": torch.tensor([1.0, 0.5, 1.0, 2.0, 0.1])[:, None],
        "top_ks": torch.tensor([1 << 30, 5, 1, 3, 1 << 30]),
        "top_ps": torch.tensor([1.0, 0.9, 1.0, 0.6, 0.95]),
        "min_ps": torch.tensor([0.0, 0.01, 0.0, 0.0, 0.05]),
        "sampling_seed": None,
        **dict.fromkeys(("need_top_k_sampling", "need_top_p_sampling", "need_min_p_sampling"), True),
    }
    return SimpleNamespace(
        runtime=SimpleNamespace(backend=chosen, allows_dynamic_shapes=chosen.allows_dynamic_shapes),
        info=SimpleNamespace(**values | info),
        nodes=SimpleNamespace(request_idx=torch.arange(NUM_REQUESTS).repeat_interleave(NUM_NODES)),
        active=row_inputs.active,
        row_inputs=row_inputs,
    )


def logits_of(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(NUM_ROWS, V, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_filtered", [True, False])
def test_one_row_at_a_time(
    is_filtered: bool, backend: str, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "STEP_BYTES", chunk * 4 * V)
    seeded = torch.tensor([t for t in range(NUM_ROWS) if t // NUM_NODES != 3])
    num_drawn = 0
    for seed in range(2):
        inputs, logits = inputs_of(backend, seed), logits_of(seed, dtype)
        info = inputs.info
        if not is_filtered:
            info.top_ks, info.top_ps, info.min_ps = (
                info.top_ks.fill_(1 << 30),
                info.top_ps.fill_(1),
                info.min_ps.fill_(0),
            )
            info.need_top_k_sampling = info.need_top_p_sampling = info.need_min_p_sampling = False
        before, start = logits.clone(), torch.arange(NUM_ROWS) - 500
        found = draws.draw_seeded(inputs, seeded, logits, start)
        assert torch.equal(logits, before) and start.tolist() == list(range(-500, NUM_ROWS - 500))
        for t in range(NUM_ROWS):
            b = t // NUM_NODES
            if t not in seeded or inputs.active[t]:
                assert found[t] == t - 500, "another's"
                continue
            probs = torch.softmax(logits[t : t + 1].float() / info.temperatures[b], -1)
            filters = Filters(info.top_ks[b : b + 1], info.top_ps[b : b + 1], info.min_ps[b : b + 1], is_filtered)
            uniform = inputs.row_inputs.token_uniform[t : t + 1]
            zero = torch.zeros(1, dtype=torch.int64)
            token, _ = BACKENDS["torch"].sample_filtered(probs, zero, zero.bool(), uniform, filters)
            assert found[t] == token, (seed, t)
            num_drawn += 1
    assert num_drawn > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_draw(backend: str) -> None:
    inputs = inputs_of(backend, 0)
    inputs.active[:] = True
    start = torch.arange(NUM_ROWS)
    assert torch.equal(draws.draw_seeded(inputs, torch.arange(NUM_ROWS), logits_of(0), start), start)
