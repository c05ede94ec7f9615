"""The one-pass form: latent rows go through the head before the coin is known, and nothing but the cost changes."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from led_sglang.ops import KnownLse, LedStep, backend_for, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.ops.cases.op_cases import CPU, MIXED, Case, make_case, rms_norm


def one_pass_state(case: Case, backend: TorchBackend, mask: Tensor | None = None) -> tuple[Tensor, LedStep]:
    """Both halves of the form, as the server runs them: (B, V_shard) product and the step."""
    if mask is None:
        mask = one_pass.one_pass_mask(case.rows, case.inputs, one_pass.COIN_THRESHOLD)
    hidden = torch.randn(len(mask), case.latents.shape[2], dtype=case.head.weight.dtype)
    num_layers = case.rows.max_depth - 1
    lse = torch.full((num_layers, len(mask)), torch.nan)
    tau = case.rows.tau
    product = backend.head_pass(hidden, case.latents[:num_layers], case.head, tau, mask, lse)
    torch.testing.assert_close(product, hidden @ case.head.weight.T, rtol=1e-5, atol=1e-5)
    known_lse = one_pass.known_lse_of(case.rows, lse, mask, one_pass.COIN_THRESHOLD)
    return mask, case.run(backend, known_lse=known_lse)


def same(step: LedStep, other: LedStep) -> None:
    for field in fields(LedStep):
        a, b = getattr(step, field.name), getattr(other, field.name)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture(params=[True, False], ids=["compacted", "fixed shapes"])
def shapes(request: pytest.FixtureRequest) -> TorchBackend:
    """Both code paths on the CPU."""
    return TorchBackend(allows_dynamic_shapes=request.param)


@pytest.mark.parametrize("vocab", [5, 97, 32001])
def test_the_same_step_as_coin_first(shapes, vocab):
    case = make_case(20, vocab, hidden=64 if vocab < 1000 else 256, layers=4, **MIXED)
    _, step = one_pass_state(case, shapes)
    same(step, case.run(shapes))


HEADS = {
    "tied to nothing": {},
    "scaled and capped": {"softcap": 6.0, "scale": 1.5},
    "biased": {"bias": torch.linspace(-2, 2, 97)},
    "padded": {"num_rows": 90},
}


@pytest.mark.parametrize("head", HEADS)
def test_head_variants(shapes, head):
    case = make_case(9, 97, explore=True).with_head(**HEADS[head])
    _, step = one_pass_state(case, shapes)
    truth = case.run("reference")
    assert step.token_ids.tolist() == truth.token_ids.tolist()
    torch.testing.assert_close(step.explore_probs, truth.explore_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_left_out_are_served_by_the_second_pass(shapes, share):
    case = make_case(12, explore=True)
    mask = torch.arange(12) < 12 * share
    _, step = one_pass_state(case, shapes, mask)
    same(step, case.run(shapes))


def test_which_rows_take_part():
    coins = torch.tensor([0.1, one_pass.COIN_THRESHOLD, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1], dtype=torch.float64)
    case = make_case(
        8,
        layers=4,
        active=torch.tensor([True, True, False, True, True, True, True, True]),
        depth=torch.tensor([4, 4, 4, 4, 4, 1, 4, 4]),
        exploit=torch.tensor([True, True, True, False, True, True, True, True]),
        trace=torch.tensor([False, False, False, False, True, False, False, False]),
        latent_norm=torch.tensor([False] * 6 + [True, False]),
        latent_offset=torch.tensor([0] * 7 + [1]),
    )
    inputs = replace(case.inputs, coin_uniform=coins)
    mask = one_pass.one_pass_mask(case.rows, inputs, one_pass.COIN_THRESHOLD)
    assert mask.tolist() == [True, False, False, True, True, False, False, False]
    assert one_pass.one_pass_mask(case.rows, inputs, 1.0).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_broken_promise_gives_the_engines_token_not_a_wrong_one(shapes):
    case = make_case(6, explore=True)
    known_lse = KnownLse(torch.zeros(3, 6), torch.arange(6) < 4, is_complete=True)
    step = case.run(shapes, known_lse=known_lse)
    assert step.ok.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_latents_break_their_row_alone(shapes, value):
    case = make_case(6, explore=True)
    latents = case.latents.clone()
    latents[1, 2, 3] = value
    mask, step = one_pass_state(replace(case, latents=latents), shapes)
    assert mask.all() and step.ok.tolist() == [True, True, False, True, True, True]


def test_the_final_norm_is_left_to_the_second_pass():
    case = make_case(4, explore=True, latent_norm=True)
    mask, step = one_pass_state(case, TorchBackend(allows_dynamic_shapes=True))
    assert not mask.any()
    same(step, case.run())
    assert rms_norm is case.head.final_norm


def test_one_read_of_the_weight():
    """Every product takes final and latent rows together: the weight's tiles are met once."""
    case = make_case(4, 1003, explore=True)
    calls = []
    linear = torch.nn.functional.linear

    def counted(rows: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        calls.append((len(rows), len(weight)))
        return linear(rows, weight, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_pass.F, "linear", counted)
        hidden, lse = torch.randn(4, 64), torch.empty(3, 4)
        rows = case.rows
        backend_for("torch", CPU).head_pass(hidden, case.latents, case.head, rows.temperature, case.inputs.active, lse)
    assert sum(width for _, width in calls) == 1003 and {num for num, _ in calls} == {4 + 3 * 4}


def test_forms():
    assert one_pass.form_of(1, "auto", True) == "coin_first"
    assert one_pass.form_of(one_pass.MAX_ROWS, "auto", False) == "one_pass"
    assert one_pass.form_of(one_pass.MAX_ROWS + 1, "auto", False) == "coin_first"
    assert {one_pass.form_of(n, "one_pass", d) for n in (1, 256) for d in (True, False)} == {"one_pass"}


def test_what_cannot_take_part_is_refused():
    case = make_case(2)
    projected = case.with_head(project=lambda rows: rows @ case.head.weight.T)
    for head, backend in ((projected.head, "torch"), (case.head, "eager")):
        with pytest.raises(ValueError, match="one-pass form needs"):
            backend_for(backend, CPU).head_pass(
                case.latents[0], case.latents, head, case.rows.temperature, case.inputs.active, torch.empty(3, 2)
            )
    known_lse = KnownLse(torch.zeros(2, 2), case.inputs.active)
    with pytest.raises(ValueError, match="needs 3 layers, 2 are known"):
        led_step(case.final_logits, case.latents, case.head, case.rows, case.inputs, known_lse=known_lse)
    with pytest.raises(ValueError, match='"eager" computes every'):
        led_step(
            case.final_logits, case.latents, case.head, case.rows, case.inputs, backend="eager", known_lse=known_lse
        )
