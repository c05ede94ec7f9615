"""Run by test_capture_order.py: what SGLang's decode graph runner does, with our hooks, for a Hopper GPU.

Nothing is compiled or run: what counts is which kernels are launched where. A kernel is loaded at its first launch in a
process, and cannot be loaded while a stream is captured.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from benchmarks.gpu.build import Hopper, launches
from led_sglang.integration.scheduler import handlers, ranks, runtime
from led_sglang.integration.scheduler.latents import lm_head as head_module
from led_sglang.integration.scheduler.latents.capture import Capture
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.integration.scheduler.served_backend import ServedBackend
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.triton import TritonBackend
from tests.unit.integration.fakes import CapturedModel, decode_graph_sizes, raise_fault

triton.runtime.driver.set_active(Hopper())
CPU = torch.device("cpu")
VOCAB, HIDDEN, LAYERS = 151936, 64, (8, 7, 6, 5)
SIZES = (8, 32, 48, 51, 256, 512)


class Processor:
    """As much of a LogitsProcessor as our hooks touch."""

    vocab_size, logit_scale, final_logit_softcapping = VOCAB, None, None

    def _compute_lm_head(self, hidden: torch.Tensor, lm_head: Any) -> torch.Tensor:
        return hidden.new_empty(len(hidden), len(lm_head.weight))

    def forward(self, input_ids: Any, hidden: torch.Tensor, lm_head: Any, *_: Any) -> torch.Tensor:
        return self._compute_lm_head(hidden, lm_head)


class Server:
    """A runtime at the moment at which graphs are captured."""

    def __init__(self, num_ranks: int, max_rows: int, is_warmed_up: bool, form: str) -> None:
        config = SimpleNamespace(
            backend="triton", form=form, head_lse="full", max_top_k=64, max_depth=len(LAYERS), methods=("led",)
        )
        made, self.processor = object.__new__(Runtime), Processor()
        served = object.__new__(ServedBackend)
        served.__dict__.update(requested="triton", device=CPU, backend=TritonBackend(), fault=None)
        made.__dict__.update(
            config=config,
            served_backend=served,
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            tables=None,
            runner=SimpleNamespace(model=CapturedModel(), dtype=torch.bfloat16),
            _processors={id(self.processor)},
            start_check=SimpleNamespace(head_scale=1.0),
            num_led_layers=len(LAYERS),
            head=None,
            automaton=None,
            is_deterministic=False,
            is_warm=not is_warmed_up,
            capture=Capture(CapturedModel(), LAYERS, 12, raise_fault),
            one_pass_state=OnePassState(form, served.backend, len(LAYERS) - 1, max_rows + 2, CPU),
        )
        made.capture.ending = "stream"
        made.capture.allocate(max_rows + 2, HIDDEN, torch.bfloat16, CPU)
        rows = VOCAB // num_ranks
        shard = SimpleNamespace(org_vocab_start_index=VOCAB - rows, num_org_elements=rows)
        self.lm_head = SimpleNamespace(weight=torch.empty(rows, HIDDEN, dtype=torch.bfloat16), shard_indices=shard)
        self.runtime, self.is_capturing = made, False

    def dummy_decode(self, num_rows: int, verifies: bool = False) -> None:
        """The model's last call in a decode graph's warm-up or capture: no sampling_info, as SGLang's dummy batches.

        verifies: the graph is one of verifications of draft tokens.
        """
        mode = SimpleNamespace(
            is_decode=lambda: not verifies, is_extend=lambda: verifies, is_target_verify=lambda: verifies
        )
        hidden = torch.empty(num_rows, HIDDEN, dtype=torch.bfloat16)
        batch = SimpleNamespace(forward_mode=mode)
        handlers.logits(Processor.forward, self.processor, None, hidden, self.lm_head, batch)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def make(num_ranks: int, *args: Any) -> Server:
        server = Server(num_ranks, *args)
        group = SimpleNamespace(world_size=num_ranks, all_gather=lambda packed, dim: packed.expand(num_ranks, -1))
        monkeypatch.setattr(ranks, "get_parallel", lambda: SimpleNamespace(tp_group=group, attn_dp_size=1))
        monkeypatch.setattr(runtime, "_runtime", server.runtime)
        monkeypatch.setattr(head_module, "has_dense_weight", lambda lm_head: True)
        monkeypatch.setattr(runtime, "is_capturing", lambda: server.is_capturing)
        return server

    with launches():
        yield make


@pytest.mark.parametrize("is_padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("max_rows", SIZES)
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("is_warmed_up", [True, False], ids=["warmed up", "graphs alone"])
def check_captures_launch_what_ran_before(
    is_warmed_up: bool, num_ranks: int, max_rows: int, is_padded: bool, serve: Any
) -> None:
    """From the largest size down, two warm-ups, then the capture. Also where nothing was run at start."""
    server, before, num_captured = serve(num_ranks, max_rows, is_warmed_up, "auto"), set(), 0
    for size in reversed(decode_graph_sizes(max_rows, is_padded)):
        for server.is_capturing in (False, False, True):
            with launches() as seen:
                server.dummy_decode(size)
            if server.is_capturing:
                new = set(seen) - before
                assert not new, f"the graph of {size} rows launches {new} for the first time"
                num_captured += len(seen)
                assert bool(seen) == (size <= one_pass.MAX_ROWS)
            before |= set(seen)
    assert num_captured and server.runtime.one_pass_state.fault is None


@pytest.mark.parametrize("is_warmed_up", [True, False], ids=["warmed up", "graphs alone"])
def check_graphs_of_verifications_launch_nothing(is_warmed_up: bool, serve: Any) -> None:
    """LED's part of a verification runs behind the replay: the graph holds the engine's product alone."""
    server = serve(1, 64, is_warmed_up, "auto")
    for size in (64, 32, 8):
        for turn, server.is_capturing in enumerate((False, False, True)):
            with launches() as seen:
                server.dummy_decode(size, verifies=True)
            assert bool(seen) == (is_warmed_up and size == 64 and turn == 0), "all is compiled at the first warm-up"
            assert not server.runtime.one_pass_state.is_one_pass
    assert server.runtime.one_pass_state.graph_sizes == []


@pytest.mark.parametrize("form", ["auto", "coin_first", "one_pass"])
def check_the_first_use_of_the_head_runs_what_requests_reach(form: str, serve: Any) -> None:
    server = serve(1, 48, True, form)
    with launches() as seen:
        server.dummy_decode(1)
    names = {launch.kernel for launch in seen}
    step = {
        "row_inputs_kernel",
        "scan_kernel",
        "coin_kernel",
        "mix_and_sample_kernel",
        "write_kernel",
        "advance_kernel",
    }
    assert step <= names
    with launches() as seen:
        server.dummy_decode(1)
    assert len(seen) == (0 if form == "coin_first" else 2), "once"


def check_nothing_is_run_at_start_inside_a_capture(serve: Any) -> None:
    """Where a head is first used there, which SGLang does not do, the next use of it outside is soon enough."""
    server = serve(1, 48, True, "coin_first")
    server.is_capturing = True
    with launches() as seen:
        server.dummy_decode(1)
    assert not seen
    server.is_capturing = False
    with launches() as seen:
        server.dummy_decode(1)
    assert seen
