"""Sampling masks through SGLang's own sampler: ours where the token is ours, the engine's bit for bit elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers import sampler as engine_sampler
from sglang.srt.layers.logits_processor import LogitsProcessorOutput, SamplingMaskOutput, SamplingMaskStatus
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler.batch import LedBatch, RequestRow
from led_sglang.integration.scheduler.methods import masks
from led_sglang.integration.scheduler.methods.masks import Draw
from led_sglang.integration.scheduler.methods.registry import Override
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.step import call, sampler
from led_sglang.integration.scheduler.step.decision import Decision
from led_sglang.integration.scheduler.step.inputs import SamplerInputs
from led_sglang.integration.scheduler.step.sampler import wrap_sampler
from led_sglang.ops import Head, RowInputs, backend_for, led_step
from led_sglang.ops.policy import led_probs
from tests.unit.integration.fakes import batch_of, request_row, sampling_info

V, H, K, CAP, LAYERS = 24, 8, 4, 12, 3
FIELDS = ("token_ids", "lengths", "selected_logprobs", "statuses")


@pytest.fixture(autouse=True)
def on_the_pytorch_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    exec_ = SimpleNamespace(kernel=SimpleNamespace(sampling_backend="pytorch"))
    monkeypatch.setattr(engine_sampler, "get_exec", lambda: exec_)


def make_sampler() -> Any:
    """SGLang's, as it is on a server of one rank."""
    made: Any = object.__new__(engine_sampler.Sampler)
    torch.nn.Module.__init__(made)
    made.rl_on_policy_target, made.enable_deterministic, made.use_log_softmax_logprob = None, False, False
    made.use_ascend_backend, made.sampling_mask_max_tokens = False, CAP
    made.tp_sync_group = made.cp_sync_group = None
    made.output_logprob_processor = engine_sampler.OutputLogprobProcessor()
    return made


def wanting(row: RequestRow) -> RequestRow:
    return replace(row, returns_mask=True)


def info_of(
    request_rows: list[RequestRow], temperatures: list[float], top_ks: list[int], support: list[bool] | None = None
) -> tuple[LedBatch, Any]:
    """The rows that return a mask in `support` mode, as the batch would be told; greedy where top_k is 1."""
    led = batch_of(*request_rows)
    info = sampling_info(led, temperatures, [k == 1 for k in top_ks])
    wants = [row for row, one in enumerate(request_rows) if one.returns_mask]
    vars(info).update(
        top_ks=torch.tensor(top_ks),
        top_ps=torch.full((len(request_rows),), 0.9),
        min_ps=torch.full((len(request_rows),), 0.01),
        max_top_k=None,
        need_top_k_sampling=True,
        need_top_p_sampling=True,
        need_min_p_sampling=True,
        has_custom_logit_processor=False,
        grammars=None,
        sampling_mask_batch_indices=torch.tensor(wants) if wants else None,
        sampling_mask_top_ks=[k if one.returns_mask else 1 for k, one in zip(top_ks, request_rows, strict=True)],
        sampling_support_logprobs_capture_indices=None,
    )
    if support is not None:
        info.sampling_support_logprobs_capture_indices = torch.tensor(
            [wants.index(r) for r, s in enumerate(support) if s]
        )
    return led, info


def logits_of(num_rows: int) -> Tensor:
    return 2 * torch.randn(num_rows, V, generator=torch.Generator().manual_seed(3))


def run(
    monkeypatch: pytest.MonkeyPatch,
    led: LedBatch,
    info: Any,
    active: list[bool],
    ok: list[bool] | None = None,
    forced: Sequence[Override] = (),
) -> tuple[Tensor, SamplingMaskOutput, Decision]:
    """One call of the wrapped sampler. Of the rows that are ours, `active` ones are inside their phase."""
    rows, num_ours = led.device_rows(info), len(led.our_rows)
    generator = torch.Generator().manual_seed(5)
    coin_uniform, token = torch.rand(2, num_ours, generator=generator, dtype=torch.float64)
    numbers, is_active = torch.arange(num_ours), torch.tensor(active)
    runtime = SimpleNamespace(
        num_step_failures=0,
        sends_records=False,
        has_forward_failed=False,
        failed_ranks=None,
        backend=backend_for("numba", torch.device("cpu")),
        allows_dynamic_shapes=True,
        advance=lambda *_: None,
        config=ServerConfig(),
        automaton=None,
        ranks=None,
    )
    runtime.counts, runtime.forget_mixtures = Counts(8, torch.device("cpu")), lambda slots: None
    row_inputs = RowInputs(is_active, coin_uniform, token, numbers, numbers, is_active, numbers)
    inputs = SamplerInputs(runtime, rows, info, row_inputs)  # type: ignore[arg-type]
    weight = torch.randn(V, H, generator=generator)
    latents = torch.randn(LAYERS, num_ours, H, generator=generator)
    made: list[Decision] = []

    def decide(inputs: SamplerInputs, logits: Tensor, draws_inactive: bool) -> Decision:
        step = led_step(rows.pick(logits), latents, Head(weight, V), rows.params, row_inputs)
        made.append(
            Decision(inputs, step if ok is None else replace(step, ok=torch.tensor(ok)), overrides=tuple(forced))
        )
        return made[-1]

    monkeypatch.setattr(call, "decide", decide)
    runtime.forward_batch = SimpleNamespace(led_inputs=inputs)
    monkeypatch.setattr(sampler, "runtime", lambda: runtime)
    output = LogitsProcessorOutput(logits_of(len(led.request_rows)))
    torch.manual_seed(11)
    ids = wrap_sampler(make_sampler())(output, info, False, None, None, torch.arange(len(led.request_rows)))
    assert output.sampling_mask_output is not None
    return ids, output.sampling_mask_output, made[0]


def stock(info: Any, num_rows: int) -> tuple[Tensor, SamplingMaskOutput]:
    """The same by an undressed sampler."""
    output = LogitsProcessorOutput(logits_of(num_rows))
    torch.manual_seed(11)
    ids = make_sampler()(output, info, False, None, None, torch.arange(num_rows))
    assert output.sampling_mask_output is not None
    return ids, output.sampling_mask_output


def reported(output: SamplingMaskOutput, row: int) -> list[int]:
    """The ids of the support; its status is OK."""
    assert output.statuses[row] == SamplingMaskStatus.OK
    ids: list[int] = output.token_ids[row, : output.lengths[row]].tolist()
    return ids


def led(seed: int = 1, is_seeded: bool = False, **params: Any) -> RequestRow:
    return wanting(request_row("led", seed, is_seeded, **{"depth": LAYERS + 1, "top_k": K, **params}))


REQUEST_ROWS = [
    led(),
    wanting(request_row("none")),
    led(phase="all"),
    wanting(RequestRow(None)),
    request_row("led", is_seeded=False, depth=2),
    led(exploit=False),
]
TEMPERATURES, TOP_KS = [0.7, 1.3, 1.0, 0.6, 1.0, 2.0], [5, 6, 1, 7, 5, 4]


def test_status_values() -> None:
    assert (masks.OK, masks.INVALID) == (SamplingMaskStatus.OK, SamplingMaskStatus.INVALID)


@pytest.mark.parametrize("is_active", [True, False])
def test_rows_of_a_mixed_batch(monkeypatch: pytest.MonkeyPatch, is_active: bool) -> None:
    """Plain rows and those outside their phase are the stock sampler's, bit for bit; the others are LED's."""
    batch, info = info_of(REQUEST_ROWS, TEMPERATURES, TOP_KS, support=[True, True, False, True, False, True])
    ids, output, decision = run(monkeypatch, batch, info, [is_active, True, True, True])
    stock_ids, stock_output = stock(info, len(REQUEST_ROWS))
    assert stock_output.support_logprobs is not None and output.support_logprobs is not None
    of_mask, of_support = {0: 0, 1: 1, 2: 2, 3: 3, 5: 4}, {0: 0, 1: 1, 3: 2, 5: 3}
    for row in (1, 3) if is_active else (0, 1, 3):
        m = of_mask[row]
        assert ids[row] == stock_ids[row]
        assert all(torch.equal(getattr(output, name)[m], getattr(stock_output, name)[m]) for name in FIELDS)
        assert torch.equal(output.support_logprobs[of_support[row]], stock_output.support_logprobs[of_support[row]])
    assert decision.step is not None
    probs = led_probs(decision.step, decision.inputs.rows.params)
    for ours, row in enumerate(batch.our_rows):
        if row not in of_mask or (row == 0 and not is_active):
            continue
        m, policy = of_mask[row], dict(zip(decision.step.candidate_ids[ours].tolist(), probs[ours], strict=True))
        support = reported(output, m)
        assert set(support) == {token for token, p in policy.items() if p > 0}
        assert [policy[t] for t in support] == sorted((policy[t] for t in support), reverse=True)
        assert ids[row].item() in support and ids[row] == decision.step.token_ids[ours]
        torch.testing.assert_close(output.selected_logprobs[m], policy[ids[row].item()].log())
        if TOP_KS[row] > 1:
            torch.testing.assert_close(output.selected_logprobs[m], decision.step.logprob[ours])
        if row in of_support:
            logprobs = output.support_logprobs[of_support[row], : len(support)]
            torch.testing.assert_close(logprobs, torch.stack([policy[t] for t in support]).log())
            assert logprobs[support.index(ids[row].item())] == output.selected_logprobs[m]
    assert len(reported(output, of_mask[2])) <= 2, "greedily no more than the arg-max of either branch"


def test_a_row_that_is_not_finite_is_reported_as_the_engine_drew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, info = info_of(REQUEST_ROWS, TEMPERATURES, TOP_KS)
    ids, output, _ = run(monkeypatch, batch, info, [True] * 4, ok=[False, True, True, True])
    stock_ids, stock_output = stock(info, len(REQUEST_ROWS))
    assert ids[0] == stock_ids[0] and ids[5] != stock_ids[5]
    assert all(torch.equal(getattr(output, name)[0], getattr(stock_output, name)[0]) for name in FIELDS)


def test_a_batch_that_is_all_greedy_has_room_for_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    request_rows = [led(seed) for seed in range(32)]
    batch, info = info_of(request_rows, [1.0] * 32, [1] * 32, support=[True] * 32)
    ids, output, decision = run(monkeypatch, batch, info, [True] * 32)
    assert output.lengths.max() == 2, "the branches never differed"
    assert output.support_logprobs is not None and decision.step is not None
    for row in range(32):
        support = reported(output, row)
        assert ids[row].item() in support
        logprobs = output.support_logprobs[row, : len(support)]
        torch.testing.assert_close(logprobs.exp().sum(), torch.tensor(1.0))
        c = decision.step.confidence[row].item()
        assert sorted(logprobs.exp().tolist()) == pytest.approx(sorted([c, 1 - c] if len(support) == 2 else [1.0]))


def test_outside_the_phase_a_named_seed_draws_from_the_engines_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mask and, in it, the logprob of the token that is returned."""
    request_rows = [led(seed, is_seeded=True) for seed in range(16)]
    batch, info = info_of(request_rows, [1.0] * 16, [6] * 16, support=[True] * 16)
    ids, output, _ = run(monkeypatch, batch, info, [False] * 16)
    stock_ids, stock_output = stock(info, 16)
    assert (ids != stock_ids).any(), "LED never drew another token"
    assert output.support_logprobs is not None and stock_output.support_logprobs is not None
    for row in range(16):
        support = reported(output, row)
        assert support == reported(stock_output, row)
        logprobs = output.support_logprobs[row, : len(support)]
        torch.testing.assert_close(logprobs, stock_output.support_logprobs[row, : len(support)])
        assert output.selected_logprobs[row] == logprobs[support.index(ids[row].item())]


def test_a_forced_token_leaves_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = wanting(request_row("soft_thinking", is_seeded=False))
    request_rows = [soft, soft, led()]
    batch, info = info_of(request_rows, [1.0] * 3, [6] * 3)
    rows = batch.device_rows(info).groups["soft_thinking"].batch_rows
    forced = rows, torch.tensor([20, 21]), torch.tensor([True, False])
    ids, output, _ = run(monkeypatch, batch, info, [False, False, True], forced=[forced])
    stock_ids, stock_output = stock(info, 3)
    assert ids[0] == 20 and reported(output, 0) == [20] and output.selected_logprobs[0] == 0
    assert ids[1] == stock_ids[1] and reported(output, 1) == reported(stock_output, 1)
    assert torch.equal(output.selected_logprobs[1], stock_output.selected_logprobs[1])


def test_what_cannot_be_reported_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours only: SGLang then aborts those requests rather than tell what is not so."""
    batch, info = info_of(REQUEST_ROWS, TEMPERATURES, TOP_KS)
    monkeypatch.setattr(Decision, "draws", lambda self: 1 / 0)
    _, output, decision = run(monkeypatch, batch, info, [True] * 4)
    assert decision.inputs.runtime.num_step_failures == 1
    assert output.statuses.tolist() == [masks.INVALID, masks.OK, masks.INVALID, masks.OK, masks.INVALID]


def test_a_token_that_its_draw_cannot_have_given_is_invalid() -> None:
    info = SimpleNamespace(
        sampling_mask_batch_indices=torch.tensor([0, 2]), sampling_support_logprobs_capture_indices=None
    )
    output = SamplingMaskOutput(
        torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 2]), torch.zeros(2), None, torch.zeros(2, dtype=torch.int32)
    )
    draw = Draw(torch.tensor([2]), torch.tensor([[7, 8]]), torch.tensor([[1.0, 0.0]]), torch.tensor([True]))
    masks.write(output, [draw], torch.tensor([1, 0, 8]), info)
    assert output.statuses.tolist() == [masks.OK, masks.INVALID]


def test_no_host_sync() -> None:
    """Fake tensors on a GPU refuse to be read, and to make shapes of values."""
    with FakeTensorMode():

        def column(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda")

        for width in (1, 64):
            info = SimpleNamespace(
                sampling_mask_batch_indices=column(4), sampling_support_logprobs_capture_indices=column(2)
            )
            output = SamplingMaskOutput(
                column(4, width), column(4), column(4, dtype=torch.float32),
                column(2, width, dtype=torch.float32), column(4, dtype=torch.int32),
            )  # fmt: skip
            draw = Draw(column(5), column(5, 8), column(5, 8, dtype=torch.float32), column(5, dtype=torch.bool))
            masks.write(output, [draw], column(9), info)
            masks.forget(output, column(5), 9, info)
            assert output.token_ids.shape == output.token_ids.new_empty(4, max(8, width)).shape


def test_only_rows_that_want_a_mask_pay_for_both_branches() -> None:
    batch, info = info_of(
        [led(), request_row("led"), led(trace=True), wanting(request_row("dola"))], [1.0] * 4, [5] * 4
    )
    assert batch.device_rows(info).params.trace.tolist() == [True, False, True, False]
    assert batch.returns_masks and batch.is_traced
    assert not batch_of(request_row("led"), wanting(request_row("none"))).returns_masks, (
        "the engine's own is right there"
    )
    assert not batch_of(led(), request_row("dola")).is_traced
