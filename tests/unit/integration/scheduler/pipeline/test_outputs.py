"""What the last stage decides is counted and reported by the first one: every row its own, a lost step as such."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from led_sglang.integration.hooks.register import HANDLERS
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.pipeline import outputs
from led_sglang.integration.scheduler.pipeline.earlier import NUMBERS, EarlierStage
from led_sglang.integration.scheduler.pipeline.outputs import StageOutput
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.wire import ACTIVE, EXPLORED, FALLBACK, RECORD_KEY, THINKING, WIRE_KEY
from tests.server import fault_plugin
from tests.unit.integration.fakes import batch_of, break_handler, request_row

ROWS = batch_of(
    request_row("led"), request_row("none"), request_row("led", trace=True, top_k=2, depth=2), request_row(None)
)
FLAGS = [THINKING | ACTIVE, THINKING | ACTIVE | EXPLORED | 2 << 8]
STATUS = {"form": {"asked": "auto", "steps": {"one_pass": 0, "coin_first": 0}}, "head": {"engine_steps": 0}}
TRACE = (  # two rows of one token: confidence, entropy, logprob, candidates, exploit, explore, entropies
    *(torch.full((2, 1), 0.5),) * 3,
    torch.tensor([[[7, 8]], [[9, 10]]]),
    *(torch.full((2, 1, 2), 0.25),) * 3,
)


def sent(flags: list[int] | None = FLAGS) -> dict[str, torch.Tensor]:
    """A step as the last stage sends it."""
    tensors = {outputs.NUMBERS: torch.tensor([3, 0, 0, 5])}
    if flags is not None:
        tensors |= {outputs.FLAGS: torch.tensor(flags)[:, None]}
        tensors |= {f"{outputs.TRACE}{i}": column[: len(flags)] for i, column in enumerate(TRACE)}
    held: dict[str, Any] = {"next_token_ids": torch.zeros(4)}
    info = {RECORD_KEY: StageOutput(tensors)}
    outputs.send(held, None, SimpleNamespace(logits_output=SimpleNamespace(customized_info=info)), None)
    return held


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> EarlierStage:
    stage = object.__new__(EarlierStage)
    stage.counts, stage.num_step_failures = Counts(8, torch.device("cpu")), 0
    stage.last_stage, stage._numbers = STATUS, torch.zeros(len(NUMBERS), dtype=torch.int64)
    stage.runner = SimpleNamespace(device="cpu")  # type: ignore[assignment]
    monkeypatch.setattr(runtime, "_runtime", None)
    monkeypatch.setattr(runtime, "_earlier", stage)
    group = SimpleNamespace(is_first_rank=True)
    monkeypatch.setattr(outputs, "get_parallel", lambda: SimpleNamespace(pp_group=group))
    return stage


def received(tensors: dict[str, torch.Tensor], led: Any = ROWS, num_rows: int = 4) -> Any:
    result = SimpleNamespace(logits_output=None)
    batch = SimpleNamespace(sampling_info=SimpleNamespace(led=led), batch_size=lambda: num_rows)
    outputs.receive(result, None, batch, None, SimpleNamespace(tensors=tensors))
    return result


def handed_out(result: Any, row: int) -> list[Any]:
    req = SimpleNamespace(customized_info=None, output_ids=[5], finished_len=None, sampling_params=None)
    records.collect(lambda *_: None, None, row, req, result.logits_output)
    return list((req.customized_info or {}).get(WIRE_KEY, []))


def test_a_step_arrives_with_its_trace(first: EarlierStage) -> None:
    result = received(sent())
    plain, none, traced, stranger = (handed_out(result, row) for row in range(4))
    records.close(None, None, None, result)
    assert (plain, none, stranger) == ([FLAGS[0]], [0], [])
    flags, confidence, _, _, candidates, *_ = traced[0]
    assert (flags, confidence, candidates) == (FLAGS[1], 0.5, [9, 10])
    counters = first.counts.status()
    assert counters["led_tokens"] == 2 and counters["explored_tokens"] == 1 and counters["tokens"]["none"] == 1


def test_what_the_last_stage_counts_is_in_the_status(first: EarlierStage) -> None:
    first.num_step_failures = 1
    received(sent())
    status = first.status()
    assert status["step_failures"] == 4
    assert status["form"] == {"asked": "auto", "steps": {"one_pass": 0, "coin_first": 5}}


def test_a_step_that_failed_early(first: EarlierStage) -> None:
    result = received(sent(None))
    assert [handed_out(result, row) for row in (0, 1, 3)] == [[FALLBACK], [0], []]
    assert first.counts.status()["fallbacks"] == 1


def test_a_step_of_another_batch_is_not_given_to_this_one(first: EarlierStage) -> None:
    for result in (received(sent(FLAGS[:1])), received(sent(), num_rows=3)):
        record = result.logits_output.customized_info[RECORD_KEY]
        assert all(record.is_lost(row) for row in range(3))


def test_stages_between_and_batches_of_strangers_have_no_record(
    first: EarlierStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert received(sent(), led=None).logits_output is None
    between = SimpleNamespace(is_first_rank=False)
    monkeypatch.setattr(outputs, "get_parallel", lambda: SimpleNamespace(pp_group=between))
    assert received(sent()).logits_output is None


@pytest.mark.parametrize("target", fault_plugin.IN_PIPELINE)
def test_a_fault_on_the_way_is_counted_and_the_tokens_go_on(
    target: str, first: EarlierStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = HANDLERS[target]
    first.failed_ranks = None
    break_handler(monkeypatch, hook, lambda *_: 1 / 0)
    tensors: dict[str, Any] = {"next_token_ids": 1}
    assert hook(tensors, *([None] * len(hook.spec.parameters))) is None
    assert tensors == {"next_token_ids": 1} and first.num_step_failures == 1


def test_a_step_without_our_rows_sends_nothing() -> None:
    held: dict[str, Any] = {}
    for output in (None, SimpleNamespace(customized_info=None)):
        outputs.send(held, None, SimpleNamespace(logits_output=output), None)
    assert held == {}
