"""A fault of ours in a function that serves everybody is counted and logged, never raised."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers.io_struct import wrap_as_pickle

from led_sglang.config.fields import LedParams
from led_sglang.config.request import StampedParams
from led_sglang.config.server import ServerConfig, export_config
from led_sglang.integration import requests, runtime, sampler
from led_sglang.integration.batch import LedBatch, RowSeat
from led_sglang.integration.capture import CaptureError
from led_sglang.integration.counts import Counts
from led_sglang.integration.records import WIRE_KEY, StepRecord
from led_sglang.ops.row_loops import FALLBACK


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LED_SGLANG_CONFIG", "")
    export_config(ServerConfig())


def test_a_malformed_answer_does_not_stop_the_tokenizer_manager(caplog: pytest.LogCaptureFixture) -> None:
    before = requests.ANSWERS.num_report_failures
    answer = SimpleNamespace(rids=["a", "b"], customized_info=wrap_as_pickle({WIRE_KEY: [[1]]}))  # one entry for two
    requests.take_entries(SimpleNamespace(rid_to_state={}), answer)
    assert requests.ANSWERS.num_report_failures == before + 1
    assert "could not report" in caplog.text


def test_a_failed_record_leaves_every_row_with_the_engines_token() -> None:
    seat = RowSeat(StampedParams(LedParams(), seed=1, is_seeded=True, sample=0))
    current = SimpleNamespace(num_step_failures=0, counts=Counts(8, torch.device("cpu")))
    broken = SimpleNamespace()  # has none of a context's tensors
    record = sampler._guarded_record(LedBatch((seat, RowSeat(None))), broken, current)  # type: ignore[arg-type]
    assert current.num_step_failures == 1
    assert isinstance(record, StepRecord)
    first = record.entry(0)
    assert isinstance(first, int) and first & FALLBACK
    assert record.entry(1) is None
    record.close()
    assert current.counts.facts()["fallbacks"] == current.counts.facts()["tokens"]["led"] == 1


def test_a_lora_wrapped_head_is_refused_before_anything_is_served() -> None:
    no_speculation = SimpleNamespace(is_none=lambda: True)
    for head, is_refused in ((SimpleNamespace(), False), (SimpleNamespace(apply_lora=None), True)):
        model, args = SimpleNamespace(lm_head=head), SimpleNamespace()
        runner = SimpleNamespace(model=model, spec_algorithm=no_speculation, server_args=args)
        if is_refused:
            with pytest.raises(CaptureError, match="--lora-target-modules"):
                runtime._refuse_unsupported(runner)
        else:
            runtime._refuse_unsupported(runner)
