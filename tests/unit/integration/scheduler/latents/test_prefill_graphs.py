"""Prefill graphs (CUDA's default, "breakable"), by SGLang's own runner: what is captured, and what a replay finds.

The runner captures `forward` of the model's body. For each replay it puts another function in its place and calls the
outer model, whose body's Python does not run then.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from led_sglang.integration.scheduler.latents.capture import Capture
from tests.unit.integration.fakes import forward_batch, raise_fault

LAYERS, NUM_LAYERS, HIDDEN, MAX_ROWS, NUM_TOKENS = (3, 1), 4, 2, 6, 5


class Layer(nn.Module):
    """Adds 10^number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, positions: Tensor, hidden: Tensor, forward_batch: Any, residual: Any = None) -> Any:
        return hidden + 10.0**self.number, None


class Body(nn.Module):
    """SGLang's inner model: of what its layers gave it hands on those that the engine asked it for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(number + 1) for number in range(NUM_LAYERS))
        self.layers_to_capture: list[int] = []

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: Any) -> Any:
        hidden, kept = input_ids[:, None].expand(-1, HIDDEN).float(), []
        for number, layer in enumerate(self.layers):
            if number in self.layers_to_capture:
                kept.append(hidden.clone())
            hidden, _ = layer(positions, hidden, forward_batch)
        return (hidden, kept) if kept else hidden


class Outer(nn.Module):
    """Its last call is the logits processor's, whose arguments `seen` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.seen: list[Any] = []


class AuxThroughTheOuterClass(Outer):
    """Qwen3's: the outer class takes the engine's layer outputs apart."""

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: Any) -> None:
        found, kept = self.model(input_ids, positions, forward_batch), None
        if self.model.layers_to_capture:
            found, kept = found
        self.seen = [found, kept]


class AuxThroughTheInnerClass(Outer):
    """MiMo's: the outer class knows of no layer outputs and hands on what the inner one returned."""

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: Any) -> None:
        self.seen = [self.model(input_ids, positions, forward_batch)]


class Graph(TorchDispatchMode):
    """A CUDA graph on a CPU: the operations of a capture, which a replay does again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, output))
        return output

    def record(self, forward: Callable[[], Any]) -> None:
        with self:
            self.output = forward()

    def replay(self, *_: Any, **__: Any) -> Any:
        """No Python of the model runs."""
        for func, args, kwargs, output in self.operations:
            again = func(*args, **kwargs)
            if isinstance(output, Tensor) and output.data_ptr() != again.data_ptr():  # else a view, or written in place
                output.copy_(again)
        return self.output


def runner_of(model: Outer, backend: Any) -> Any:
    """As much of SGLang's runner as its two methods read."""
    runner = object.__new__(PrefillCudaGraphRunner)
    first = SimpleNamespace(is_first_rank=True)
    vars(runner).update(
        layer_model=model.model,
        backend=backend,
        model_runner=SimpleNamespace(model=model, pp_group=first),
        buffer_registry=SimpleNamespace(has_slot=lambda name: False),
        is_dsv41_model=False,
        _is_full_backend=False,
        _qwen_bcg_hc_sidechannel=False,
        _use_draft_input_embeds=False,
        _prefill_forward_context=lambda *args, **kwargs: nullcontext(),
        _capture_pp_proxy_tensors=lambda num_tokens: None,
        _uses_eager_prefill_tail=lambda: True,
        _get_layer_model_positions=lambda batch: batch.positions,
    )
    return runner


def prefill(lengths: list[int], **led: Any) -> Any:
    batch = forward_batch(lengths, **led)
    vars(batch).update(
        input_ids=torch.arange(NUM_TOKENS),
        mm_input_embeds=None,
        global_dp_buffer_len=None,
        global_num_tokens_cpu=None,
        dp_padding_mode=SimpleNamespace(is_max_len=lambda: True),
    )
    return batch


@pytest.mark.parametrize("kept", [[], [1, 2]], ids=["no layer kept", "the engine keeps layers"])
@pytest.mark.parametrize("outer", [AuxThroughTheOuterClass, AuxThroughTheInnerClass])
def test_a_replay_fills_the_buffer_and_the_engine_has_its_own(outer: type[Outer], kept: list[int]) -> None:
    model = outer()
    model.model.layers_to_capture = kept
    capture = Capture(model, LAYERS, NUM_LAYERS, raise_fault)
    capture.allocate(MAX_ROWS, HIDDEN, torch.float32, "cpu")
    capture.ending = "first"
    graph = Graph()
    runner, static = runner_of(model, graph), prefill([NUM_TOKENS])
    forward = model.model.forward
    for _ in range(2):  # SGLang's warm-ups
        runner._run_forward(static, NUM_TOKENS)
    graph.record(lambda: runner._run_forward(static, NUM_TOKENS))
    sums = {1: 10.0, 3: 1110.0}
    assert capture.buffer is not None
    for first, lengths in enumerate(([1, 1, 3], [4], [1, 1, 1, 1, 1])):
        batch = prefill(lengths, led=object())
        static.input_ids.copy_(torch.arange(NUM_TOKENS) + first)
        capture.buffer.fill_(torch.nan)
        capture.begin(batch)
        runner._execute_body_capture(batch, static, NUM_TOKENS, sum(lengths), None)
        last = (torch.tensor(lengths).cumsum(0) - 1).tolist()
        expected = [[first + row + sums[layer] for row in last] for layer in LAYERS]
        assert capture.latents(len(LAYERS), len(lengths), None)[:, :, 0].tolist() == expected
        hidden = torch.arange(NUM_TOKENS).float() + first + 11110
        found, aux = (*model.seen, None)[:2]
        if kept and aux is None:  # the inner class's pair, as it is
            found, aux = found
        assert torch.equal(found[:, 0], hidden) and bool(aux) == bool(kept)
        for number, states in zip(kept, aux or (), strict=True):
            assert states[0, 0] == first + sum(10.0**n for n in range(1, number + 1)), "the engine's own layers"
    assert model.model.forward == forward
