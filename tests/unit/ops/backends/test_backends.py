"""Every backend against the float64 reference, under the same noise, by error budget."""

from dataclasses import fields, replace

import pytest
import torch

from led_sglang.ops import BACKENDS, LedStep, backend_for, led_step
from led_sglang.ops.backends.lm_head import sum_of
from led_sglang.ops.backends.numba import NumbaBackend
from tests.unit.ops.cases.op_cases import CPU_BACKENDS, make_case, others
from tests.unit.ops.cases.oracle import check


@others
@pytest.mark.parametrize("vocab", [97, 32001])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 17, 128])
def test_sizes(backend, num_rows, vocab):
    if vocab > 97 and num_rows > 17:
        num_rows = 20  # the reference walks row by row
    check(make_case(num_rows, vocab, hidden=64 if vocab == 97 else 256, seed=num_rows), backend)


@others
def test_large_vocabulary(backend):
    check(make_case(3, 151936, hidden=256, depth=2, explore=True), backend)


@others
def test_many_rows(backend):
    check(make_case(128, 97, depth=8, trace=True), backend)


@others
@pytest.mark.parametrize("explore", [True, False])
def test_all_or_none_explore(backend, explore):
    case = make_case(explore=explore)
    assert case.run(backend).explored.tolist() == [explore] * 17
    check(case, backend)


ABLATIONS = {
    "depth": {"depth": 16},
    "one depth": {"depth": 1},
    "one candidate": {"top_k": 1},
    "more candidates than tokens": {"vocab": 5},
    "many candidates": {"top_k": 64},
    "norm": {"latent_norm": True},
    "normalized layers": {"normalize_layers": True},
    "no exploitation": {"exploit": False},
    "offset": {"latent_offset": 1},
    "min_p": {"min_p": 0.2},
    "greedy": {"greedy": True},
    "trace": {"trace": True},
    "spare layers": {"layers": 9},
    "cold": {"temperature": 0.01},
    "hot": {"temperature": 5.0},
}


@others
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation(backend, name):
    check(make_case(**ABLATIONS[name]), backend)
    check(make_case(**{"explore": True, "seed": 1} | ABLATIONS[name]), backend)


@others
@pytest.mark.parametrize("seed", range(4))
def test_every_row_its_own_parameters(backend, seed):
    rng = torch.Generator().manual_seed(seed)

    def pick(*values):
        return torch.tensor(values)[torch.randint(len(values), (40,), generator=rng)]

    rows = {name: pick(True, False) for name in ("greedy", "exploit", "latent_norm", "normalize_layers", "trace")}
    rows |= {"active": pick(True, True, False), "depth": pick(1, 2, 5, 8), "top_k": pick(1, 3, 8)}
    rows |= {"latent_offset": pick(0, 1), "min_p": pick(0.0, 0.05, 1.0), "temperature": pick(0.1, 0.6, 1.3)}
    case = make_case(40, seed=seed, **rows, layers=8)
    case = replace(case, rows=replace(case.rows, max_depth=8, max_top_k=8))
    check(case, backend)


@others
def test_an_offset_beside_a_row_of_full_depth(backend):
    """As many layers as the deepest row needs: the other row's offset must not be forgotten."""
    check(make_case(2, depth=torch.tensor([8, 7]), latent_offset=torch.tensor([0, 1]), layers=7, explore=True), backend)


@others
def test_promises_only_save_work(backend):
    careful = dict.fromkeys(
        ("any_min_p", "mixed_top_k", "mixed_depth", "any_greedy", "any_normalize", "any_offset"), True
    )
    case = make_case()
    for field in fields(LedStep):
        a, b = getattr(case.run(backend), field.name), getattr(case.with_rows(**careful).run(backend), field.name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@others
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [97, 32001])
def test_half_precision_heads(backend, dtype, vocab):
    check(
        make_case(40 if vocab == 97 else 5, vocab, hidden=64 if vocab == 97 else 128, dtype=dtype, explore=True),
        backend,
    )


@others
@pytest.mark.parametrize(
    "head", [{"softcap": 5.0}, {"scale": 0.3}, {"bias": torch.linspace(-3, 3, 97)}, {"scale": 2.0, "softcap": 8.0}]
)
def test_head_variants(backend, head):
    check(make_case(explore=True).with_head(**head), backend)


@others
@pytest.mark.parametrize("vocab", [97, 32001])
def test_padded_vocabulary_rows_count_for_nothing(backend, vocab):
    case = make_case(9, vocab, explore=True)
    padding = torch.full((31, 64), 50.0)
    padded = case.with_head(weight=torch.cat([case.head.weight, padding]))
    wide = replace(padded, final_logits=torch.nn.functional.pad(case.final_logits, (0, 31), value=-torch.inf))
    for other in (padded, wide):
        check(other, backend)
        assert other.run(backend).token_ids.tolist() == case.run(backend).token_ids.tolist()


@others
def test_non_contiguous_inputs(backend):
    case = make_case(explore=True)
    strided = replace(
        case,
        final_logits=case.final_logits.T.contiguous().T,
        latents=case.latents.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        head=replace(case.head, weight=case.head.weight.T.contiguous().T),
    )
    assert not strided.latents.is_contiguous() and not strided.final_logits.is_contiguous()
    check(strided, backend)


@others
@pytest.mark.parametrize("explore", [True, False])
def test_depth_one_is_plain_top_k_sampling_bit_for_bit(backend, explore):
    case = make_case(128, 512, depth=1, explore=explore)
    top = (case.final_logits / case.rows.temperature[:, None]).softmax(-1).topk(8)
    cumulated = top.values.div(top.values.sum(-1, keepdim=True)).cumsum(-1, dtype=torch.float64)
    choice = torch.searchsorted(cumulated, case.inputs.token_uniform[:, None] * cumulated[:, -1:], right=True)
    step = case.run(backend)
    assert step.token_ids.tolist() == top.indices.gather(1, choice)[:, 0].tolist()
    assert torch.equal(step.explore_probs, step.exploit_probs)


@others
def test_empty_batch(backend):
    step = make_case(0).run(backend)
    assert step.token_ids.shape == (0,) and step.candidate_ids.shape == (0, 8)


@others
def test_rows_of_minus_infinity_inside_the_top_k(backend):
    case = make_case(explore=True)
    third = case.final_logits.topk(3).values[:, 2:]
    logits = case.final_logits.masked_fill(case.final_logits < third, -torch.inf)
    masked = replace(case, final_logits=logits)
    check(masked, backend)
    assert ((masked.run(backend).explore_probs > 0).sum(-1) == 3).all()


@others
@pytest.mark.parametrize("explore", [True, False])
def test_broken_final_logits_never_raise(backend, explore):
    case = make_case(6, explore=explore)
    logits = case.final_logits.clone()
    logits[0, 5], logits[2, 7], logits[4] = torch.nan, torch.inf, -torch.inf
    step = replace(case, final_logits=logits).run(backend)
    assert step.ok.tolist() == [False, True, False, True, False, True]
    assert ((step.token_ids >= 0) & (step.token_ids < 97)).all()
    clean = case.run(backend)
    assert step.token_ids[step.ok].tolist() == clean.token_ids[step.ok].tolist()


@others
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("vocab", [97, 32001])
def test_broken_latents_break_only_rows_that_need_them(backend, value, vocab):
    coins = torch.tensor([0.0, 0.0, 1 - 2**-53, 0.0], dtype=torch.float64)
    case = make_case(4, vocab, depth=3)
    latents = case.latents.clone()
    latents[1, 0, 3] = value
    latents[0, 2] = value  # this row exploits
    broken = replace(case, latents=latents, inputs=replace(case.inputs, coin_uniform=coins))
    assert broken.run(backend).ok.tolist() == [False, True, True, True]
    check(broken, backend)


@others
def test_edge_uniforms_never_pick_a_candidate_of_probability_zero(backend):
    case = make_case(128, 97, top_k=8, explore=True)
    logits = case.final_logits.clone()
    logits[:, 2:] = -torch.inf
    for uniform in (0.0, 1 - 2**-53, 1 - 2**-24):
        inputs = replace(case.inputs, token_uniform=torch.full((128,), uniform, dtype=torch.float64))
        assert (replace(case, final_logits=logits, inputs=inputs).run(backend).token_ids < 2).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nothing_is_modified(backend):
    case = make_case(explore=True, trace=True, latent_norm=True)
    before = [
        t.clone()
        for t in (
            case.final_logits,
            case.latents,
            case.head.weight,
            case.inputs.coin_uniform,
            case.inputs.token_uniform,
        )
    ]
    case.run(backend)
    after = (case.final_logits, case.latents, case.head.weight, case.inputs.coin_uniform, case.inputs.token_uniform)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_unknown_backend_and_missing_layers_are_refused():
    case = make_case()
    with pytest.raises(ValueError, match="unknown LED backend 'fast'"):
        case.run("fast")
    with pytest.raises(ValueError, match="needs a GPU"):
        case.run("triton")
    with pytest.raises(ValueError, match="needs 3 latent layers, got 2"):
        replace(case, latents=case.latents[:2]).run()
    assert led_step.__doc__ and all(name in led_step.__doc__ for name in BACKENDS)


def test_what_auto_means(monkeypatch):
    for name, device, chosen in (
        ("auto", "cpu", ("numba", "compiled", True)),
        ("auto", "cuda", ("triton", "triton", False)),
        ("auto", "xpu", ("torch", "fused", False)),
        ("fused", "cuda", ("torch", "fused", False)),
        ("torch", "cpu", ("torch", "fused", True)),
        ("compiled", "cpu", ("numba", "compiled", True)),
        ("eager", "cpu", ("torch", "eager", True)),
        ("reference", "cpu", ("torch", "reference", True)),
    ):
        backend = backend_for(name, torch.device(device))
        assert (backend.name, backend.public_name, backend.allows_dynamic_shapes) == chosen, name
    monkeypatch.setattr(NumbaBackend, "step", None)
    with pytest.raises(TypeError, match="not callable"):
        make_case(1).run("auto")


@pytest.mark.parametrize("name", ["numba", "compiled"])
def test_compiled_loops_are_for_the_cpu(name):
    with pytest.raises(ValueError, match=f'"{name}" is for the CPU; this step is on cuda'):
        backend_for(name, torch.device("cuda"))


@others
def test_candidates_are_different_tokens(backend):
    """A grammar that leaves two tokens still gives k candidates to show, none of them twice."""
    case = make_case(5, 97, explore=True)
    logits = torch.full_like(case.final_logits, -torch.inf)
    logits[:, [0, 40]] = torch.tensor([1.0, 2.0])
    ids = replace(case, final_logits=logits).run(backend).candidate_ids
    assert ids[:, :2].tolist() == [[40, 0]] * 5
    assert all(len(set(row)) == 8 for row in ids.tolist())


def test_compiled_ties_go_to_the_smaller_id():
    logits = torch.zeros(1, 5000)
    logits[0, 4321] = 1.0
    case = replace(make_case(1, 5000, top_k=4), final_logits=logits)
    assert case.run("numba").candidate_ids.tolist() == [[4321, 0, 1, 2]]


@pytest.mark.parametrize("num_rows", [1, 9, 64])
def test_a_sum_over_candidates_does_not_know_how_many_others_have(num_rows):
    """A row's own, alone and with the zeros that a row beside it with a larger k brings: the same bits in any width."""
    for own in range(1, 41):
        values = torch.rand(num_rows, own, generator=torch.Generator().manual_seed(own))
        alone = [sum_of(row[None]) for row in values]
        for width in (own, own + 1, 48, 64, 256):
            together = sum_of(torch.nn.functional.pad(values, (0, width - own)))
            assert torch.equal(together, torch.cat(alone)), (own, width)
        torch.testing.assert_close(together[:, 0], values.double().sum(-1).float())
