"""A verification on a GPU: no value is read on the host, no shape depends on data. See ops/backends/test_no_sync.py."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from led_sglang.integration.scheduler.batch import DeviceRows
from led_sglang.integration.scheduler.ranks import RankCheck
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.speculation import verify
from led_sglang.integration.scheduler.speculation.outcome import Outcome, Verdict
from led_sglang.ops import Head, ThinkingTables
from led_sglang.wire import RECORD_KEY
from tests.unit.integration.fakes import batch_of, request_row
from tests.unit.integration.scheduler.speculation.world import TABLES, fake_runtime
from tests.unit.ops.cases.op_cases import EVERY_SWITCH, FIXED_SHAPES, make_rows, on_gpu
from tests.unit.ops.cases.watch import V, Watch

GPU = torch.device("cuda")
B, N, D, H = 9, 5, 4, 64


def column(count: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(count, dtype=dtype, device=GPU)


def device_rows(num_ours: int, is_part: bool) -> DeviceRows:
    number, flag = column(num_ours), column(num_ours, torch.bool)
    return DeviceRows(
        index=number if is_part else None,
        **dict.fromkeys(("seed", "sample", "start_state", "start_length", "method"), number),
        phase_all=flag,
        is_led=flag if is_part else None,
        any_phase_all=True,
        groups={},
        params=on_gpu(make_rows(num_ours, **{"depth": 8, "top_k": 8} | EVERY_SWITCH)),
        seeded=column(2),
        edited=column(3),
    )


class OnGpu:
    """A verification of a batch, half of which is ours or all."""

    def __init__(self, is_part: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        num_ours = 8
        led = batch_of(*(request_row("led", trace=i == 0) for i in range(num_ours)), *[request_row(None)] * is_part)
        num_requests = num_ours + is_part
        rows = device_rows(num_ours, is_part)
        led._cache["rows"] = rows
        info = SimpleNamespace(
            led=led,
            temperatures=torch.empty(num_requests, 1, device=GPU),
            top_ks=column(num_requests, torch.int32),
            top_ps=column(num_requests, torch.float32),
            min_ps=column(num_requests, torch.float32),
            sampling_seed=None,
            acc_additive_penalties=torch.empty(num_requests, V, device=GPU),
            acc_scaling_penalties=None,
            logit_bias=torch.empty(num_requests, V, device=GPU),
            **dict.fromkeys(("need_top_k_sampling", "need_top_p_sampling", "need_min_p_sampling"), True),
        )
        head = Head(torch.empty(V, H, device=GPU, dtype=torch.bfloat16), V, final_norm=lambda hidden: hidden * 2)
        model: Any = SimpleNamespace(head=head)
        self.runtime = fake_runtime(model, FIXED_SHAPES)
        self.runtime.__dict__.update(
            states=column(41),
            num_led_layers=8,
            tables=ThinkingTables(TABLES.symbol_of.cuda(), TABLES.next_state.cuda(), TABLES.num_symbols),
            counts=records.Counts(8, GPU),
            ranks=RankCheck(lambda digest: torch.stack([digest, digest]), 64, torch.device("cpu"), lambda ids: ids),
        )
        self.runtime.ranks._digest, self.runtime.ranks._interval = column(64), 32  # between two checks
        self.runtime.capture.latents = lambda layers, num_rows, index: torch.empty(
            layers, num_rows, H, device=GPU, dtype=torch.bfloat16
        )
        links = torch.empty(num_requests, N, dtype=torch.int64, device=GPU)
        verify_input = SimpleNamespace(
            draft_token=column(num_requests * N),
            draft_token_num=N,
            positions=column(num_requests * N),
            retrieve_next_token=links,
            retrieve_next_sibling=links,
        )
        batch = SimpleNamespace(
            sampling_info=info, seq_lens=column(num_requests), req_pool_indices=column(num_requests)
        )
        self.output = SimpleNamespace(
            next_token_logits=torch.empty(num_requests * N, V, device=GPU), customized_info=None
        )
        accept_index = torch.empty(num_requests, D, dtype=torch.int32, device=GPU)
        self.stock = Outcome(column(num_requests * N, torch.int32), column(num_requests, torch.int32), accept_index)
        self.arguments: Any = (self.runtime, led, verify_input, batch, self.output, self.stock)
        module = importlib.import_module("sglang.kernels.ops.speculative.spec_tree")

        def walk(predicts: Tensor, accept_index: Tensor, accept_token_num: Tensor, **rest: Any) -> Any:
            assert all(value.dtype == torch.int64 for value in rest.values() if isinstance(value, Tensor))
            assert {predicts.dtype, accept_index.dtype, accept_token_num.dtype} == {torch.int32}
            return predicts, accept_index, accept_token_num

        monkeypatch.setattr(module, "verify_tree_greedy_func", walk)
        self.to_host: list[Any] = []
        monkeypatch.setattr(records, "to_host", lambda tensor: (self.to_host.append(tensor), tensor)[1])

    def verify(self) -> Watch:
        with Watch() as watch:
            verify._verify(*self.arguments)
        return watch


@pytest.mark.parametrize("is_part", [False, True])
def test_no_host_sync(is_part: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first of a batch, which makes the rows of its nodes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = OnGpu(is_part, monkeypatch)
        for num_verified in (1, 2):
            watch = made.verify()
            assert made.runtime.num_step_failures == 0 and not watch.copies
            assert made.output.customized_info[RECORD_KEY] is not None
            assert len(made.to_host) == 9 * num_verified, "flags, number of tokens and seven columns of the trace"
            assert {tensor.device.type for tensor in made.to_host} == {"cuda"}


@pytest.mark.parametrize("name", ["decide", "apply", "of_verify"])
def test_a_sync_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = {"decide": verify, "apply": Verdict, "of_verify": records.StepRecord}[name]
    original = getattr(owner, name)

    def look(*args: Any) -> Any:
        if column(4).any():
            return None
        return original(*args)

    monkeypatch.setattr(owner, name, look)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = OnGpu(False, monkeypatch)
        made.verify()
        assert made.runtime.num_step_failures == 1
