"""Run under TRITON_INTERPRET=1 by test_triton.py: the kernels on CPU, on sizes that are no multiple of any block."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from led_sglang.ops import Head, KnownLse, LedStep, backend_for, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.lm_head import candidate_logits as torch_candidates
from led_sglang.ops.backends.lm_head import latent_lse as torch_lse
from led_sglang.ops.kernels import candidates, final_layer, lm_head
from led_sglang.ops.kernels import mix_and_sample as mix_and_sample_file
from led_sglang.ops.kernels.candidates import candidate_logits
from led_sglang.ops.kernels.final_layer import FinalRows
from led_sglang.ops.kernels.lm_head import latent_lse
from led_sglang.ops.kernels.mix_and_sample import mix_and_sample
from led_sglang.ops.types import StepInputs
from tests.unit.ops.cases import input_cases, stats_cases, token_rows, tree_cases
from tests.unit.ops.cases.edit_cases import with_edits
from tests.unit.ops.cases.op_cases import CPU, FIXED_SHAPES, Case, make_case, make_inputs, make_rows
from tests.unit.ops.cases.watch import Launches


@pytest.fixture
def real_blocks() -> None:
    """For what counts launches and bytes as they are served."""


@pytest.fixture(autouse=True)
def _small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts and many blocks, and less for the interpreter to sort."""
    if "real_blocks" in request.fixturenames:
        return
    monkeypatch.setattr(final_layer, "PART", 64)
    monkeypatch.setattr(final_layer, "STRIP", 8)
    monkeypatch.setattr(lm_head, "SMALL_TILE", lm_head.SMALL_TILE._replace(rows=8, vocab=32))
    monkeypatch.setattr(lm_head, "LARGE_TILE", lm_head.LARGE_TILE._replace(rows=16, vocab=64))
    monkeypatch.setattr(lm_head, "BLOCK_COUNT", 16)


def compare(case: Case, tolerance: float = 1e-5) -> None:
    step, truth = case.run("triton"), case.run("torch")
    for field in fields(LedStep):
        expected = getattr(truth, field.name)
        torch.testing.assert_close(
            getattr(step, field.name), expected, rtol=10 * tolerance, atol=tolerance, equal_nan=True
        )


def check_row_list() -> None:
    """Rows beyond the count are not computed, and those within keep their places."""
    case = make_case(41, 1500, hidden=48, depth=3)
    explore_mask = torch.arange(41) % 3 == 1
    tau = torch.linspace(0.3, 2, 41)
    poisoned = case.latents.masked_fill(~explore_mask[:, None], torch.nan)
    truth = torch.stack([torch_lse(layer, case.head, tau[:, None]) for layer in case.latents])
    for rows in (explore_mask, torch.zeros_like(explore_mask), torch.ones_like(explore_mask)):
        latents = poisoned if rows is explore_mask else case.latents
        found = latent_lse(latents, case.head, tau[:, None], rows, None)
        torch.testing.assert_close(found, truth.where(rows, 0.0))
    strided = torch.stack([tau, tau + 1], 1)[:, :1], torch.stack([explore_mask, ~explore_mask], 1)[:, 0]
    torch.testing.assert_close(latent_lse(poisoned, case.head, *strided, None), truth.where(explore_mask, 0.0))
    has_lse, known = torch.arange(41) % 4 == 1, torch.randn(3, 41)
    found = latent_lse(poisoned, case.head, tau[:, None], explore_mask, KnownLse(known, has_lse))
    torch.testing.assert_close(found, truth.where(explore_mask & ~has_lse, known[:2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def check_normalizers(dtype: torch.dtype) -> None:
    """Half-precision operands, float32 sums: closer to float64 than torch, which rounds the logits."""
    case = make_case(6, 1300, hidden=70, depth=2, dtype=dtype)
    tau, explore_mask = torch.linspace(0.3, 2, 6), torch.ones(6, dtype=torch.bool)
    truth = (case.latents[0].double() @ case.head.weight.double().T / tau[:, None]).logsumexp(-1)
    error = (latent_lse(case.latents, case.head, tau[:, None], explore_mask, None)[0] - truth).abs().max()
    assert error < 1e-4, error
    plain = torch_lse(case.latents[0], case.head, tau[:, None])
    assert error <= (plain - truth).abs().max() + 1e-5


ODD_HEAD = {"softcap": 6.0, "scale": 1.5, "bias": torch.linspace(-1, 1, 300), "num_rows": 290}


@pytest.mark.parametrize("head", [{}, ODD_HEAD], ids=["plain", "odd"])
def check_one_pass(head: dict[str, object]) -> None:
    """Final rows, latent rows and rows left out, in one kernel; more final rows than one block holds."""
    case = make_case(13, 300, hidden=40, depth=3, explore=True).with_head(**head)
    hidden, tau = torch.randn(13, 40), case.rows.tau
    mask, lse = torch.arange(13) % 4 > 0, torch.empty(2, 13)
    product = backend_for("triton", CPU).head_pass(hidden, case.latents, case.head, tau, mask, lse)
    torch.testing.assert_close(product, hidden @ case.head.weight.T, rtol=1e-5, atol=1e-5)
    known_lse = one_pass.known_lse_of(case.rows, lse, mask, one_pass.COIN_THRESHOLD)
    step = led_step(
        case.final_logits, case.latents, case.head, case.rows, case.inputs, backend="triton", known_lse=known_lse
    )
    torch.testing.assert_close(step.explore_probs, case.run("torch").explore_probs, rtol=1e-4, atol=1e-5)


def check_edits() -> None:
    """Rows with penalties or bias take torch's way, in either form; the kernels' rows beside them keep their bits."""
    is_edited = torch.arange(4) % 2 == 0
    plain = make_case(4, 97, hidden=20, depth=2, trace=True, exploit=False)
    weight, mixed = plain.head.weight, with_edits(plain, "all", is_edited)
    for case in (mixed, mixed.with_head(softcap=6.0, project=lambda h: h @ weight.T), with_edits(plain, "ban")):
        compare(case)
    step, alone = mixed.run("triton"), plain.run("triton")
    for field in fields(LedStep):
        assert torch.equal(getattr(step, field.name)[~is_edited], getattr(alone, field.name)[~is_edited])
    lse, mask = torch.empty(1, 4), torch.arange(4) != 1
    tau, hidden = mixed.rows.tau, torch.randn(4, 20)
    backend_for("triton", CPU).head_pass(hidden, mixed.latents, mixed.head, tau, mask, lse)
    known_lse = one_pass.known_lse_of(mixed.rows, lse, mask, one_pass.COIN_THRESHOLD)
    arguments = (mixed.final_logits, mixed.latents, mixed.head, mixed.rows, mixed.inputs)
    has_lse = led_step(*arguments, backend="triton", known_lse=known_lse, edits=mixed.edits)
    torch.testing.assert_close(has_lse.explore_probs, mixed.run("torch").explore_probs, rtol=1e-4, atol=1e-5)


def check_fixed_shapes() -> None:
    """As on a GPU: the final layer's normalizer by its own kernel, rows skipped on the device."""
    case = make_case(5, 1100, hidden=64, depth=3)
    broken = replace(case, final_logits=case.final_logits.clone())
    broken.final_logits[1, 3], broken.final_logits[2], broken.final_logits[3, 4] = torch.nan, -torch.inf, torch.inf
    truth = case.run("torch")
    step = case.run("triton")
    assert broken.run("triton").ok.tolist() == [True, False, False, False, True]
    for name in ("exploit_probs", "confidence", "token_ids", "depth", "explore_probs"):
        torch.testing.assert_close(getattr(step, name), getattr(truth, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("k", "dtype"),
    [(1, torch.float32), (3, torch.float32), (8, torch.bfloat16), (16, torch.float32), (40, torch.float32)],
)
def check_final_rows(k: int, dtype: torch.dtype) -> None:
    """Parts of the vocabulary merged, by our own selection and by torch's; equal, forbidden and negative logits."""
    logits = torch.randn(5, 3 * final_layer.PART + 77, generator=torch.Generator().manual_seed(k)).to(dtype) * 5
    logits[1] -= 100
    logits[2, : final_layer.PART + 5] = -torch.inf
    logits[3, 4:] = -torch.inf
    rows, tau = make_rows(5, top_k=torch.tensor([k, k, k, k, 1]), trace=True), torch.linspace(0.3, 2, 5)
    half = torch.full((5,), 0.5, dtype=torch.float64)
    found = final_layer.final_rows(logits, tau, rows, make_inputs(half, half))
    top, ids = logits.topk(k)
    truth = (logits.float() / tau[:, None]).log_softmax(-1)
    torch.testing.assert_close(
        found.logprobs,
        truth.gather(1, ids).masked_fill(torch.arange(k) >= rows.top_k[:, None], -torch.inf),
        rtol=1e-5,
        atol=1e-5,
    )
    assert torch.equal(logits.gather(1, found.candidate_ids), top)
    assert torch.equal(found.explored, truth.amax(-1).exp() < 0.5)
    if k <= final_layer.MAX_PICKED:  # of equal logits the smaller id comes first
        order = logits.double().argsort(descending=True, stable=True)[:, :k]
        finite = top > -torch.inf
        assert torch.equal(found.candidate_ids[finite], order[finite])


def tied_logits(num_vocab: int) -> torch.Tensor:
    """Rows whose largest logits are equal: within a strip, across strips and parts, of either zero, and all of them."""
    generator = torch.Generator().manual_seed(num_vocab)
    few = torch.randint(-2, 2, (3, num_vocab), generator=generator).float()
    rare = torch.where(torch.rand(2, num_vocab, generator=generator) < 0.02, 3.0, few[:2])
    zeros = torch.where(torch.arange(num_vocab) % 3 == 0, -0.0, 0.0)[None]
    steps = torch.arange(num_vocab).float()[None]
    last = torch.full((1, num_vocab), -torch.inf).index_fill(1, torch.tensor([num_vocab - 1]), 1.0)
    return torch.cat([few, rare, zeros, torch.zeros_like(zeros), steps, -steps, (steps // 5) % 7, last])


@pytest.mark.parametrize(("k", "num_vocab"), [(1, 65), (8, 5), (8, 64), (8, 700), (11, 300)])
def check_ties_go_to_the_smaller_id(k: int, num_vocab: int) -> None:
    """Selection by levels is exact: whole parts and strips of equals, peaks that many strips share, ends of a row."""
    logits, k = tied_logits(num_vocab), min(k, num_vocab)
    num_rows = len(logits)
    half = torch.full((num_rows,), 0.5, dtype=torch.float64)
    for some in (logits, torch.stack([logits, logits + 9], 2)[:, :, 0]):  # contiguous, and strided in both axes
        rows = make_rows(num_rows, top_k=k)
        found = final_layer.final_rows(some, torch.ones(num_rows), rows, make_inputs(half, half))
        order = (logits + 0.0).argsort(descending=True, stable=True)[:, :k]
        assert torch.equal(found.candidate_ids[:-1], order[:-1])
        assert found.candidate_ids[-1, 0] == num_vocab - 1 and found.candidate_ids[-1].max() < num_vocab
        truth = logits.log_softmax(-1).gather(1, order)
        torch.testing.assert_close(found.logprobs[:-1], truth[:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k", "hidden"), [(8, 70), (3, 300), (200, 40)])
def check_candidates(k: int, hidden: int) -> None:
    """Bias, scale and soft cap, a shard of the vocabulary, rows left out, more hidden dimensions than a block."""
    case = make_case(7, 311, hidden=hidden, depth=4, top_k=k)
    ids = torch.randint(311, (7, k), generator=torch.Generator().manual_seed(k))
    tau, explore_mask = torch.linspace(0.3, 2, 7)[:, None], torch.arange(7) % 3 != 1
    plain = {"softcap": 6.0, "scale": 1.5, "bias": torch.linspace(-1, 1, 311)}
    shard = {"first_id": 100, "num_rows": 90, "weight": case.head.weight[100:200], "all_gather": torch.clone}
    for changes in ({}, plain, shard, {**shard, "bias": torch.linspace(-1, 1, 100)}):
        head = replace(case.head, **changes)
        truth = torch_candidates(case.latents, ids, head, tau)
        found = candidate_logits(case.latents, ids, head, tau, explore_mask)
        torch.testing.assert_close(found, truth * explore_mask[:, None], rtol=1e-4, atol=1e-4)


def compare_mix_and_sample(case: Case) -> None:
    """The step in a handful of kernels against torch's many, every field of every row that uses it."""
    step, truth = case.run("triton"), case.run(FIXED_SHAPES)
    rows = case.inputs.active & truth.ok
    assert torch.equal(step.ok, truth.ok) and torch.equal(step.explored, truth.explored)
    assert ((step.token_ids >= 0) & (step.token_ids < case.final_logits.shape[1])).all()
    assert torch.equal(step.token_ids[rows], truth.token_ids[rows]) and torch.equal(step.depth[rows], truth.depth[rows])
    for name in ("confidence", "exploit_probs", "explore_probs", "entropy"):
        assert (getattr(step, name) is None) == (getattr(truth, name) is None), name
        if getattr(truth, name) is not None:
            torch.testing.assert_close(getattr(step, name)[rows], getattr(truth, name)[rows], rtol=1e-4, atol=1e-5)
    reported = rows & (case.rows.trace | truth.explored)
    if case.rows.any_trace:
        torch.testing.assert_close(step.logprob[reported], truth.logprob[reported], rtol=1e-4, atol=1e-5)
        reported &= case.rows.trace
        torch.testing.assert_close(step.depth_entropy[reported], truth.depth_entropy[reported], rtol=1e-4, atol=1e-5)


MIXES: dict[str, dict[str, Any]] = {
    "plain": {"vocab": 97},
    "depth 1": {"vocab": 97, "depth": 1, "explore": True},
    "traced": {"vocab": 97, "top_k": 3, "explore": True, "trace": True},
    "more candidates than tokens": {"vocab": 5, "top_k": 8, "explore": True},
    "one candidate": {"vocab": 97, "top_k": 1, "explore": True, "trace": True},
}


@pytest.mark.parametrize("changes", MIXES.values(), ids=list(MIXES))
def check_mix_and_sample(changes: dict[str, Any]) -> None:
    compare_mix_and_sample(make_case(17, **changes))


def check_mix_and_sample_of_more_layers_than_a_batch_reaches() -> None:
    """A server's latents are those of its deepest request: the kernel is compiled for them, whatever is asked."""
    for depth in (1, 2, 4):
        for trace in (False, True):
            compare_mix_and_sample(make_case(9, 97, depth=depth, layers=7, explore=True, trace=trace))


@pytest.mark.parametrize("seed", range(3))
def check_mix_and_sample_of_mixed_rows(seed: int) -> None:
    """Every column that the kernel reads, mixed within a batch."""
    row = torch.arange(17)
    mixed = {
        "depth": row % 4 + 1,
        "top_k": row % 7 + 1,
        "greedy": row % 3 == 0,
        "exploit": row % 5 > 0,
        "normalize_layers": row % 2 == 0,
        "trace": row % 4 < 2,
        "min_p": (row % 3 == 1) * 0.05,
    }
    case = make_case(17, 97, seed=seed, active=row % 6 > 0)
    compare_mix_and_sample(replace(case, rows=make_rows(17, **mixed)))


def check_mix_and_sample_of_broken_rows() -> None:
    broken = make_case(9, 97, explore=True, trace=True)
    broken.final_logits[1, 3], broken.final_logits[2], broken.final_logits[3, 4] = torch.nan, -torch.inf, torch.inf
    broken.latents[0, 5, 2], broken.latents[2, 6, 1] = torch.inf, torch.nan
    compare_mix_and_sample(broken)
    shallow = torch.arange(9) % 3 + 2  # row 6 does not reach its NaN
    compare_mix_and_sample(replace(broken, rows=make_rows(9, depth=shallow, trace=True)))


@contextmanager
def launches() -> Iterator[Launches]:
    """What a step on a GPU would launch and allocate."""
    mode = Launches()
    kernels = {
        final_layer: ("scan_kernel", "coin_kernel"),
        candidates: ("candidates_kernel",),
        lm_head: ("head_kernel", "merge_kernel"),
        mix_and_sample_file: ("mix_and_sample_kernel",),
    }
    with ExitStack() as stack:
        for module, names in kernels.items():
            for name in names:
                stack.enter_context(patch.object(module, name, mode))
        stack.enter_context(mode)
        yield mode


def num_launches(case: Case, known_lse: KnownLse | None) -> int:
    with launches() as mode:
        led_step(
            case.final_logits, case.latents, case.head, case.rows, case.inputs, backend="triton", known_lse=known_lse
        )
    return mode.count


@pytest.mark.usefixtures("real_blocks")
def check_memory() -> None:
    """All that a step allocates, at the paper's size for 256 rows: the vocabulary is in none of it."""
    num_rows, vocab, hidden, num_layers = 256, 151936, 2560, 7
    head = Head(torch.empty(vocab, hidden, dtype=torch.bfloat16), vocab)  # never touched: no memory
    latents, logits = torch.empty(num_layers, num_rows, hidden, dtype=torch.bfloat16), torch.empty(num_rows, vocab)
    rows, inputs = make_rows(num_rows, num_layers + 1), make_inputs(*torch.zeros(2, num_rows, dtype=torch.float64))
    with launches() as mode:
        led_step(logits, latents, head, rows, inputs, backend="triton")
    assert 0 < mode.num_bytes <= 64 << 20, mode.num_bytes
    mask, lse = torch.ones(num_rows, dtype=torch.bool), torch.empty(num_layers, num_rows)
    with launches() as mode:
        product = backend_for("triton", CPU).head_pass(latents[0], latents, head, rows.temperature, mask, lse)
    extra = mode.num_bytes - product.numel() * product.element_size()  # the product is the engine's own
    assert 0 < extra <= 64 << 20, extra


@pytest.mark.usefixtures("real_blocks")
def check_launches() -> None:
    """A row alone on a GPU waits for launches: `fused` makes 48 of them coin first and 52 in one pass."""
    for trace in (False, True):
        case = make_case(1, 97, depth=8, trace=trace)
        known_lse = KnownLse(torch.zeros(7, 1), torch.ones(1, dtype=torch.bool), is_complete=True)
        found = num_launches(case, None), num_launches(case, known_lse)
        assert found == (6, 6), found


@pytest.mark.parametrize(("seed", "num_rows"), enumerate((1, 9, 150, 0)))
def check_count(seed: int, num_rows: int) -> None:
    """Flags and counters of a step in one kernel against torch's, twice; more rows than a block, and none."""
    case = stats_cases.draw(seed, num_rows, is_decided=True, has_failed=False)
    flags, counters = stats_cases.count(case, "triton")
    stats_cases.count(case, "triton", counters)
    expected, counted = stats_cases.count(case, "torch")
    stats_cases.count(case, "torch", counted)
    assert torch.equal(flags, expected) and torch.equal(counters.values, counted.values)


@pytest.mark.parametrize(("seed", "num_rows"), enumerate((1, 6, 70, 0)))
def check_row_inputs(seed: int, num_rows: int) -> None:
    """Every kind of batch, more rows than a block, and none; the tokens and states that follow."""
    for is_part, is_mixed, is_extend in itertools.product((False, True), repeat=3):
        meta, batch = input_cases.draw(seed, num_rows, is_part, is_mixed)
        dtype = torch.int32 if is_mixed else torch.int64
        found = input_cases.run(meta, batch, is_extend, dtype, "triton")
        expected = input_cases.run(meta, batch, is_extend, dtype, "numba")
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def check_one_pass_mask() -> None:
    """Which rows take part, by every column that decides it."""
    row = torch.arange(70)
    rows = make_rows(
        70,
        depth=row % 3 + 1,
        exploit=row % 7 > 0,
        trace=row % 11 == 0,
        greedy=row % 4 == 0,
        latent_norm=row % 13 == 0,
        latent_offset=row % 17 == 0,
    )
    rows, coin_uniform = replace(rows, temperature=torch.linspace(0.1, 2, 70)), torch.linspace(0, 1, 70).double()
    inputs = StepInputs(row % 5 > 0, coin_uniform, coin_uniform)
    for index in (None, torch.arange(70) + 3):
        no = {"latent_norm": row < 0, "latent_offset": 0 * row, "any_norm": False, "any_offset": False}
        for plain in (rows, replace(rows, **no)):
            found = []
            for backend in ("triton", "torch"):
                mask, tau = torch.zeros(80, dtype=torch.bool), torch.zeros(80)
                backend_for(backend, CPU).one_pass_mask(plain, inputs, index, mask, tau)
                found.append((mask, tau))
            assert all(map(torch.equal, *found)) and 0 < found[0][0].sum() < 70


def check_overflow() -> None:
    """A normalizer of +inf is a broken row, not a layer of probability 0."""
    rows, inputs, all_rows = make_rows(3, depth=2), make_case(3).inputs, torch.ones(3, dtype=torch.bool)
    logprobs, ids = torch.randn(3, 8).log_softmax(-1), torch.arange(24).view(3, 8)
    lse = torch.tensor([[0.0, torch.inf, 0.0]])
    final = FinalRows(ids, logprobs, all_rows, all_rows)
    step = mix_and_sample(final, lse, torch.randn(1, 3, 8), rows, inputs)
    assert step.ok.tolist() == [True, False, True]


def decided(
    latent_probs: float, uniforms: list[float], explore_mask: list[bool], lse: float = 0.0, **rows: Any
) -> LedStep:
    """Rows that explore, of two equal candidates and six forbidden ones; one latent layer, which is sure of neither."""
    num_rows = len(uniforms)
    logprobs = torch.full((num_rows, 8), -torch.inf)
    logprobs[:, :2] = -1.0
    ids, mask = torch.arange(8).expand(num_rows, 8).contiguous(), torch.tensor(explore_mask)
    logits = torch.full((1, num_rows, 8), latent_probs)
    inputs = make_inputs(torch.zeros(num_rows).double(), torch.tensor(uniforms, dtype=torch.float64))
    final = FinalRows(ids, logprobs, mask, mask)
    return mix_and_sample(final, torch.full((1, num_rows), lse), logits, make_rows(num_rows, depth=2, **rows), inputs)


def check_edges_of_the_draw() -> None:
    """A uniform at the edge is the next candidate's; none reaches one of probability 0."""
    last = 1 - 2.0**-53
    for explores in (False, True):
        step = decided(-1.0, [0.0, 0.4999, 0.5, last], [explores] * 4)
        assert step.token_ids.tolist() == [0, 0, 1, 1] and step.ok.all()


def check_depths_of_equal_entropy() -> None:
    assert decided(-1.0, [0.3] * 2, [True] * 2).depth.tolist() == [1, 1], "the smaller one"


def check_latents_that_are_not_needed_break_no_row() -> None:
    """What the head's pass leaves in rows that do not explore may be anything."""
    for lse in (torch.nan, torch.inf):
        assert decided(-1.0, [0.3] * 2, [True, False], lse=lse).ok.tolist() == [False, True]


def check_token_rows() -> None:
    """Several tokens of a request in one step."""
    token_rows.compare(backend_for("triton", CPU))


STEPS: dict[str, dict[str, Any]] = {
    "alone": {"num_rows": 1, "vocab": 97, "hidden": 20, "explore": True},
    "explores": {"num_rows": 3, "vocab": 97, "hidden": 20, "explore": True},
    "traced": {"num_rows": 5, "vocab": 1300, "hidden": 70, "depth": 3, "trace": True},
    "exploits": {"num_rows": 3, "vocab": 97, "explore": False},
}


@pytest.mark.parametrize("changes", STEPS.values(), ids=list(STEPS))
def check_step(changes: dict[str, Any]) -> None:
    compare(make_case(**changes))


def check_step_of_an_odd_head() -> None:
    compare(make_case(3, 97, explore=True).with_head(softcap=6.0, scale=1.5, bias=torch.linspace(-1, 1, 97)))
    compare(make_case(3, 130, explore=True).with_head(num_rows=101))


def check_step_in_half_precision() -> None:
    compare(make_case(2, 97, dtype=torch.float16, explore=True, depth=2), tolerance=1e-3)  # "torch" rounds logits


def check_broken_latents() -> None:
    broken = make_case(3, 97, explore=True)
    broken.latents[0, 1, 2] = torch.inf
    assert broken.run("triton").ok.tolist() == [True, False, True]


def check_draft_trees() -> None:
    """Node states, pruning and the step over trees, as in torch."""
    tree_cases.compare(backend_for("triton", CPU), num_seeds=2, num_nodes=4)
    for seed in range(2):
        stats_cases.compare_counted("triton", seed, is_decided=True)
