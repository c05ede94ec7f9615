"""The captured layers reach the buffer, at once or when somebody asks."""

import pytest
import torch
from torch import nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.capture import Capture
from tests.unit.integration.fakes import CapturedModel

LAYERS = (3, 1, 2)  # in the order wanted; the engine returns them ascending


def capture_of(layers: tuple[int, ...] = LAYERS, allows_dynamic_shapes: bool = True) -> Capture:
    capture = Capture(CapturedModel(), layers, allows_dynamic_shapes)
    capture.allocate(6, 2, torch.float32, "cpu")
    return capture


def outputs(num_tokens: int, base: float = 0.0) -> list[torch.Tensor]:
    """Of layers 1, 2, 3: the layer, and the token in the second column."""
    tokens = torch.arange(num_tokens) + base
    return [torch.stack([torch.full((num_tokens,), float(layer)), tokens], 1) for layer in (1, 2, 3)]


@pytest.mark.parametrize("allows_dynamic_shapes", [True, False])
def test_rows_and_layers_are_where_they_are_wanted(allows_dynamic_shapes: bool) -> None:
    capture = capture_of(allows_dynamic_shapes=allows_dynamic_shapes)
    capture.store(outputs(5), torch.tensor([1, 4]))  # an extend step: the last tokens of two prompts
    assert capture.latents(3, 2, None)[:, :, 0].tolist() == [[3, 3], [1, 1], [2, 2]]
    assert capture.latents(2, 2, None)[:, :, 1].tolist() == [[1, 4], [1, 4]]
    capture.store(outputs(4, base=10), None)  # a decode step
    assert capture.latents(1, 4, torch.tensor([3, 0])).tolist() == [[[3, 13], [3, 10]]]
    assert capture.latents(3, 4, None)[:, :, 1].tolist() == [[10, 11, 12, 13]] * 3
    assert capture.latents(3, 3, None)[:, :, 1].tolist() == [[10, 11, 12]] * 3, "a padded batch"
    packed = torch.cat(outputs(2, base=20), 1)
    capture.store(packed, None)
    assert capture.states[:, :2, 1].tolist() == [[20, 21]] * 3


def test_a_graph_finds_the_rows_in_the_buffer_itself() -> None:
    """A replay runs no Python: the copy must be part of what was captured."""
    capture = capture_of()
    capture.store(outputs(2), None)
    assert capture.buffer is not None and not capture.buffer.any()
    capture = capture_of(allows_dynamic_shapes=False)
    capture.store(outputs(2), None)
    assert capture.buffer is not None
    assert capture.buffer[:, :2, 0].tolist() == [[3, 3], [1, 1], [2, 2]]


def test_what_nobody_reads_is_forgotten() -> None:
    capture = capture_of()
    capture.store(outputs(2), None)
    capture.drop()
    assert not capture.states.any()


class Inner(nn.Module):
    """MiMo's inner model: returns a tuple once it was asked for layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers_to_capture: list[int] = []

    def forward(self, hidden: torch.Tensor) -> object:
        return (hidden, [hidden + layer for layer in self.layers_to_capture]) if self.layers_to_capture else hidden


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result = self.model(hidden)
        assert isinstance(result, torch.Tensor), "what the outer model hands to the logits processor"
        return result


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_prefill_graph_that_replaces_the_inner_forward_keeps_the_layers(is_listed: bool) -> None:
    """SGLang's breakable prefill graphs capture `inner.forward` itself, and replace it by a replay of what it gave."""
    outer = Outer()
    capture = Capture(outer, (2, 1))
    capture.allocate(6, 1, torch.float32, "cpu")
    eager = outer(torch.zeros(2, 1))
    assert torch.equal(eager, torch.zeros(2, 1))
    capture.store(None, None)
    assert capture.states[:, :2, 0].tolist() == [[2, 2], [1, 1]]
    hidden, layers = outer.model.forward(torch.ones(3, 1))  # type: ignore[misc]  # the capture
    for replay in range(2):
        kept = [layer + replay for layer in layers]
        outer.model.forward = lambda _, kept=kept: (hidden, kept if is_listed else tuple(kept))  # type: ignore[method-assign]
        outer(torch.zeros(3, 1))
        capture.store(None, None)
        assert capture.states[:, :3, 0].tolist() == [[3 + replay] * 3, [2 + replay] * 3]
        del outer.model.forward


class ListedOuter(nn.Module):
    """Qwen3's: the inner module's layers come out of the outer class, which hands them to the logits processor."""

    def __init__(self, capture: "list[Capture]") -> None:
        super().__init__()
        self.model, self.capture = Inner(), capture

    def set_eagle3_layers_to_capture(self, layer_ids: list[int]) -> None:
        self.model.layers_to_capture = [layer + 1 for layer in layer_ids]

    def forward(self, hidden: torch.Tensor, last_index: torch.Tensor) -> torch.Tensor:
        states, layers = self.model(hidden)
        self.capture[0].store(layers, last_index)
        return states  # type: ignore[no-any-return]


@pytest.mark.parametrize("allows_dynamic_shapes", [True, False])
def test_a_prefill_graph_that_keeps_a_list_of_layers_gives_each_replay_its_own(
    allows_dynamic_shapes: bool,
) -> None:
    """SGLang's breakable graphs keep one buffer for all sizes; a replay overwrites it and hands out its first rows."""
    from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import BreakableCudaGraphBackend

    held: list[Capture] = []
    outer = ListedOuter(held)
    capture = Capture(outer, (2, 1), allows_dynamic_shapes)
    capture.allocate(6, 1, torch.float32, "cpu")
    held.append(capture)
    kept = outer.model.forward(torch.zeros(8, 1))  # the capture: `.forward` itself, with padding
    slice_output = BreakableCudaGraphBackend._slice_output
    for replay, num_tokens, last in ((1, 5, [1, 4]), (2, 3, [2])):

        def replay_forward(_: torch.Tensor, replay: int = replay, num_tokens: int = num_tokens) -> object:
            hidden, layers = kept  # type: ignore[misc]
            for layer, static in zip((1, 2), layers, strict=True):
                static.copy_(torch.arange(8.0)[:, None] + 100 * replay + 1000 * layer)
            return slice_output(
                BreakableCudaGraphBackend.__new__(BreakableCudaGraphBackend), (hidden, layers), num_tokens
            )

        outer.model.forward = replay_forward  # type: ignore[method-assign]
        outer(torch.zeros(num_tokens, 1), torch.tensor(last))
        del outer.model.forward
        expected = [[1000 * layer + 100 * replay + token for token in last] for layer in (2, 1)]
        assert capture.latents(2, len(last), None)[:, :, 0].tolist() == expected


def test_missing_layers_are_reported_when_they_come() -> None:
    capture = capture_of()
    with pytest.raises(CaptureError, match="returned no layer outputs"):
        capture.store(None, None)
    with pytest.raises(CaptureError, match="2 layer outputs, 3 were asked for"):
        capture.store(outputs(2)[:2], None)
    none = Capture(CapturedModel(), ())
    none.store(None, None)
    with pytest.raises(CaptureError, match="no layer is captured"):
        assert none.states


@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_that_do_not_fit_are_reported_and_the_buffer_stays(is_packed: bool) -> None:
    """`torch.stack(out=...)` would give the view other storage, and nobody would read it."""

    def output(rows: int, width: int = 2) -> list[torch.Tensor] | torch.Tensor:
        layers = [torch.ones(rows, width)] * 3
        return torch.cat(layers, 1) if is_packed else layers

    capture = capture_of(allows_dynamic_shapes=False)
    place = capture.states.data_ptr()
    capture.store(output(6), None, 6)
    with pytest.raises(CaptureError, match="a batch of 7 rows does not fit LED's buffer of 6 rows"):
        capture.store(output(7), None, 7)
    with pytest.raises(CaptureError, match="3 rows of its layers for 4 tokens"):  # a rank's share of them
        capture.store(output(3), torch.tensor([0, 2]), 4)
    with pytest.raises(CaptureError, match="layers 4 wide, its hidden size is 2"):
        capture.store(output(6, width=4), None, 6)
    capture.store(output(9), torch.tensor([0, 8]), 9)  # a prompt longer than the buffer
    capture.store(output(6), None, 5)  # a graph's padding
    assert capture.states.data_ptr() == place and capture.states.shape == (3, 6, 2)


def test_a_model_that_cannot_be_captured_serves_depth_1() -> None:
    """The way out that the refusal names: nothing is asked of the model, and there are no latents to look at."""
    none = Capture(nn.Linear(2, 2), ())
    none.allocate(4, 3, torch.float32, "cpu")
    none.store(None, None)
    assert none.latents(0, 2, None).shape == (0, 2, 3)
    assert none.latents(0, 2, torch.tensor([1])).shape == (0, 1, 3)
