"""Faults that published code has had. Each must be seen by the comparison the other tests rest on."""

from dataclasses import replace

import pytest
import torch

from tests.unit.ops.cases.op_cases import CPU_BACKENDS, Case, make_case


def temperature_one_in_the_latents(case: Case) -> Case:
    return replace(case, latents=case.latents * case.rows.temperature[:, None])


MUTATIONS = {
    "layers in reverse order": lambda case: replace(case, latents=case.latents.flip(0)),
    "one layer too early": lambda case: replace(case, latents=case.latents.roll(-1, 0)),
    "final layer taken for a latent one": lambda case: replace(
        case, latents=torch.cat([case.latents[:1], case.latents[:-1]])
    ),
    "one depth too few": lambda case: case.with_rows(depth=case.rows.depth - 1, mixed_depth=True),
    "norm applied": lambda case: case.with_rows(
        latent_norm=torch.ones_like(case.rows.latent_norm), any_norm=True, all_norm=True
    ),
    "no temperature in the latents": temperature_one_in_the_latents,
    "wrong temperature": lambda case: case.with_rows(temperature=case.rows.temperature * 1.01),
    "layers normalised": lambda case: case.with_rows(
        normalize_layers=torch.ones_like(case.rows.normalize_layers), any_normalize=True
    ),
    "softmax over a truncated vocabulary": lambda case: case.with_head(num_rows=90),
    "rows mixed up": lambda case: replace(case, latents=case.latents.roll(1, 1)),
}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_seen(backend, name):
    case = make_case(32, depth=4, explore=True, layers=4)
    if name == "softmax over a truncated vocabulary":
        case = replace(case, final_logits=case.final_logits[:, :90])
    truth, wrong = case.run("reference"), MUTATIONS[name](case).run(backend)
    off = (wrong.explore_probs - truth.explore_probs).abs().amax(-1) > 1e-4
    assert off.float().mean() > 0.15, "the inputs hide this fault"
