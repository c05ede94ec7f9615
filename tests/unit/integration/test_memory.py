"""What is told of memory is what is really allocated: tensors of a CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.cuda_graph_config import CudaGraphConfig, PhaseConfig
from sglang.srt.server_args import ServerArgs

from led_sglang.config.methods import captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.embedded import model_path
from led_sglang.integration.memory import (
    GraphSizes,
    MemoryPlan,
    Sizes,
    eager_tokens_of,
    memory_of_check,
    memory_plan,
    rows_of,
    shortage,
    tokens_per_request_of,
)
from led_sglang.integration.scheduler.latents.capture import Capture
from led_sglang.integration.scheduler.methods.soft_inputs import SoftInputs
from tests.unit.integration.fakes import CapturedModel, EmbeddingModel, forward_batch, raise_fault

HIDDEN, VOCABULARY, DECODE_ROWS, PREFILL_TOKENS = 24, 97, 5, 11
GRAPHS = GraphSizes(DECODE_ROWS, PREFILL_TOKENS)
CONFIGS = {
    "led": ServerConfig(num_layers=12),
    "all": ServerConfig(
        num_layers=12, methods=("led", "dola", "soft_thinking", "confident"), open_ids=(6,), close_ids=(7,)
    ),
    "nothing is captured": ServerConfig(num_layers=12, depth=1, max_depth=1),
}
DTYPES = (torch.float32, torch.bfloat16)


def plan_of(config: ServerConfig, dtype: torch.dtype, graphs: GraphSizes = GRAPHS) -> MemoryPlan:
    return memory_plan(config, Sizes(16, HIDDEN, VOCABULARY, dtype.itemsize, graphs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_buffer(config: ServerConfig, dtype: torch.dtype) -> None:
    capture = Capture(CapturedModel(), captured_layers(config), 12, raise_fault)
    capture.allocate(16, HIDDEN, dtype, "cpu")
    assert capture.buffer is not None
    assert plan_of(config, dtype).parts["capture buffer"] == capture.buffer.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_rows_that_a_layer_of_a_prefill_takes(
    num_parts: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's output and its residual stream, of the sampled rows; of a decode step nothing is copied but once."""
    layers = captured_layers(CONFIGS["led"])
    capture = Capture(CapturedModel(), layers, 12, raise_fault)
    capture.allocate(16, HIDDEN, dtype, "cpu")
    taken: list[int] = []
    select = torch.Tensor.index_select

    def spy(self: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        found = select(self, dim, index)
        taken.append(found.nbytes)
        return found

    monkeypatch.setattr(torch.Tensor, "index_select", spy)
    parts = tuple(torch.zeros(PREFILL_TOKENS, HIDDEN, dtype=dtype) for _ in range(num_parts))
    capture.store(0, parts, forward_batch([PREFILL_TOKENS]))
    planned = plan_of(CONFIGS["led"], dtype).parts
    assert sum(taken) * 2 // num_parts == planned["rows of prefill graphs"]
    assert planned["rows of eager prefills"] == 0
    taken.clear()
    decode = tuple(torch.zeros(DECODE_ROWS, HIDDEN, dtype=dtype) for _ in range(num_parts))
    capture.store(0, decode, forward_batch(num_tokens=DECODE_ROWS))
    assert not taken


def test_soft_tables_and_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = SimpleNamespace(
        model=EmbeddingModel(),
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(15, 1)),
        server_args=SimpleNamespace(),
    )
    inputs = SoftInputs(runner, CONFIGS["all"], raise_fault)
    hidden_size = 3  # of the model's table
    parts = memory_plan(CONFIGS["all"], Sizes(16, hidden_size, 10, 4, GraphSizes())).parts
    assert parts["soft tables"] == inputs.num_bytes
    inputs.is_soft[:] = True  # a CPU looks up nothing for the others
    made: list[int] = []
    look_up = torch.nn.functional.embedding

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = look_up(*args, **kwargs)
        made.append(found.numel())
        return found

    monkeypatch.setattr(torch.nn.functional, "embedding", spy)
    batch = SimpleNamespace(
        req_pool_indices=torch.arange(16), forward_mode=SimpleNamespace(is_decode=lambda: True), sampling_info=None
    )
    runner.model(torch.zeros(16, dtype=torch.int64), None, batch)
    assert parts["soft mixtures"] == max(made) * (4 + 4 + 4), "the embeddings, in float32, times their weights"


def test_a_method_that_is_off_takes_nothing() -> None:
    parts = plan_of(CONFIGS["led"], torch.float32, GraphSizes()).parts
    assert {name for name, size in parts.items() if size} == {"capture buffer", "step"}
    assert plan_of(CONFIGS["all"], torch.float32).parts["logits of methods"] == 6 * 4 * VOCABULARY * 16


@pytest.mark.parametrize(
    ("bs", "max_bs", "backend", "largest"),
    [
        ([1, 2, 40], 40, "trace", 40),
        (None, 24, "trace", 24),
        ([1, 512], None, "trace", 512),
        ([1, 2], 2, "disabled", 0),
    ],
)
def test_the_largest_graph_as_sglang_has_it(bs: Any, max_bs: Any, backend: str, largest: int) -> None:
    config = CudaGraphConfig(
        decode=PhaseConfig(backend=backend, bs=bs, max_bs=max_bs), prefill=PhaseConfig(backend="disabled")
    )
    graphs = GraphSizes.of(SimpleNamespace(cuda_graph_config=config))
    assert graphs == GraphSizes(largest, 0)
    assert rows_of(20, graphs) == max(32, -(-largest // 16) * 16)
    assert GraphSizes.of(SimpleNamespace()) == GraphSizes()


def test_verified_draft_tokens_are_rows() -> None:
    args = ServerArgs(model_path=model_path(), speculative_algorithm="NGRAM", speculative_num_draft_tokens=4)
    assert rows_of(20, GraphSizes(), tokens_per_request_of(args)) == 96
    assert rows_of(20, GraphSizes(40), tokens_per_request_of(args)) == 160
    assert tokens_per_request_of(SimpleNamespace(speculative_algorithm=None, speculative_num_draft_tokens=None)) == 1


@pytest.mark.parametrize("num_slots", [1, 14, 15, 16, 4097])
def test_rows_are_whole_alignments(num_slots: int) -> None:
    rows = rows_of(num_slots, GraphSizes())
    assert rows % 16 == 0 and num_slots + 1 <= rows < num_slots + 17


def test_it_is_said_in_one_line_with_its_parts() -> None:
    """Qwen3-4B's sizes on an H200, as the review of the CUDA path counted them."""
    sizes = Sizes(4112, 2560, 151_936, 2, GraphSizes(256, 8192))
    plan = memory_plan(ServerConfig(num_layers=36), sizes)
    assert plan.text() == (
        "535.2 MB of device memory for batches of up to 4112 rows (capture buffer 168.4 MB, "
        "rows of prefill graphs 42.1 MB, step 324.6 MB)"
    )
    assert plan.to_dict()["total"] == sum(plan.parts.values())
    assert "\n" not in plan.text()


def test_a_shortage_names_both_numbers_and_what_to_lower() -> None:
    plan = MemoryPlan({"step": 2_000_000_000}, 16)
    assert shortage(plan, 2_000_000_000) is None
    reported = shortage(plan, 1_900_000_000)
    assert reported is not None
    for word in ("2.00 GB", "1.90 GB", "--mem-fraction-static"):
        assert word in reported


def test_a_check_compares_with_what_the_fraction_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.configs import model_config

    found = SimpleNamespace(hidden_size=HIDDEN, vocab_size=VOCABULARY, dtype=torch.bfloat16)
    monkeypatch.setattr(model_config.ModelConfig, "from_server_args", lambda server_args: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = SimpleNamespace(total_memory=10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    for fraction, is_short in ((0.9, False), (0.95, True)):
        args = SimpleNamespace(
            max_running_requests=14,
            cuda_graph_config=None,
            device="cuda",
            mem_fraction_static=fraction,
            chunked_prefill_size=-1,
            max_prefill_tokens=7,
        )
        plan, short = memory_of_check(CONFIGS["led"], args)
        assert plan.max_rows == 16 and (short is not None) == is_short
        assert plan.parts["rows of eager prefills"] == 2 * HIDDEN * 2 * 7 and not plan.has_graphs
    args.max_running_requests = None  # as many as SGLang itself takes
    assert memory_of_check(CONFIGS["led"], args)[0].max_rows == 4112


def test_the_step_of_a_large_batch_is_reported() -> None:
    """Latent rows and their partial sums are allocated for all rows, needed or not."""
    sizes = Sizes(4112, 2560, 151_936, 2, GraphSizes())
    step = memory_plan(ServerConfig(num_layers=36), sizes).parts["step"]
    assert step >= 7 * 4112 * (2560 * 2 + 1187 * 4) > 64 << 20


@pytest.mark.parametrize(
    ("chunk", "most", "graph_tokens", "eager"),
    [(8192, 16384, 8192, 0), (8192, 16384, 2048, 8192), (-1, 16384, 0, 16384)],
)
def test_the_largest_prefill_without_a_graph(chunk: int, most: int, graph_tokens: int, eager: int) -> None:
    args = SimpleNamespace(chunked_prefill_size=chunk, max_prefill_tokens=most)
    assert eager_tokens_of(args, GraphSizes(0, graph_tokens)) == eager
