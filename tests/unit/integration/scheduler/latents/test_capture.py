"""The sampled rows of the wanted layers reach the buffer, whatever the layers return and however they are called."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.layer_boundary.residual.add_norm import PLAIN_ADD
from sglang.srt.layers.layer_boundary.residual.stream import DeclaredSum, ResidualStream
from sglang.srt.layers.utils import PPMissingLayer
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.capture import Capture
from tests.unit.integration.fakes import forward_batch, raise_fault

LAYERS, NUM_LAYERS, HIDDEN, MAX_ROWS = (3, 1, 2), 4, 2, 6  # in the order wanted
Batch = Any


def contribution(number: int, hidden: Tensor) -> Tensor:
    return torch.full_like(hidden, float(10**number))


class StreamLayer(nn.Module):
    """Qwen's: the contribution waits in the stream for the next layer."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, positions: Tensor, hidden: Tensor, batch: Batch) -> Any:
        stream = batch.residual_stream
        if stream.residual is None:
            stream.write(hidden.clone())
        elif stream.pending is not None:
            stream.write(stream.pending.value + stream.residual)
        return stream.record(contribution(self.number, hidden), PLAIN_ADD)


class WrittenLayer(StreamLayer):
    """Gemma 4's: the stream holds the sum when the layer ends."""

    def forward(self, positions: Tensor, hidden: Tensor, batch: Batch) -> Any:
        return batch.residual_stream.write(hidden + contribution(self.number, hidden))


class SumLayer(StreamLayer):
    """Granite's."""

    def forward(self, positions: Tensor, hidden: Tensor, batch: Batch, residual: Tensor | None = None) -> Any:
        before = hidden if residual is None else hidden + residual
        return contribution(self.number, hidden), before


class FirstLayer(StreamLayer):
    """Cohere's: the second is the stream before the layer, and must not be added."""

    def forward(self, positions: Tensor, hidden: Tensor, batch: Batch, residual: Tensor | None = None) -> Any:
        return hidden + contribution(self.number, hidden), hidden


class TransformersLayer(StreamLayer):
    """Of SGLang's fallback: a batch dimension of 1, and the batch by name."""

    def forward(self, hidden: Tensor, forward_batch: Batch | None = None) -> Any:
        return hidden + contribution(self.number, hidden)


class Model(nn.Module):
    """A decoder of these layers; its vision tower has as many."""

    def __init__(self, layer: Callable[[int], nn.Module], calls_forward: bool = False) -> None:
        super().__init__()
        self.visual = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS))
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(layer(number + 1) for number in range(NUM_LAYERS))
        self.calls_forward = calls_forward

    def forward(self, tokens: Tensor, batch: Batch) -> None:
        """tokens: (T, H), the embeddings."""
        hidden: Any = tokens
        batch.residual_stream = (
            ResidualStream() if isinstance(self.model.layers[0], StreamLayer) and self.is_stream else None
        )
        residual = None
        for layer in self.model.layers:
            run = layer.forward if self.calls_forward else layer
            if isinstance(layer, TransformersLayer):
                hidden = run(hidden.reshape(1, -1, HIDDEN), forward_batch=batch)
            elif self.is_stream:
                hidden = run(batch.positions, hidden, batch)
            else:
                hidden, residual = run(batch.positions, hidden, batch, residual)

    @property
    def is_stream(self) -> bool:
        return not isinstance(self.model.layers[0], SumLayer | FirstLayer | TransformersLayer)


KINDS = {
    "stream": (StreamLayer, "stream"),
    "written": (WrittenLayer, "stream"),
    "sum": (SumLayer, "sum"),
    "first": (FirstLayer, "first"),
    "transformers": (TransformersLayer, "first"),
}


def captured(kind: str, calls_forward: bool = False) -> tuple[Model, Capture]:
    layer, ending = KINDS[kind]
    model = Model(layer, calls_forward)
    capture = Capture(model, LAYERS, NUM_LAYERS, raise_fault)
    capture.allocate(MAX_ROWS, HIDDEN, torch.float32, "cpu")
    capture.ending = ending
    return model, capture


def embeddings(num_tokens: int) -> Tensor:
    return torch.arange(num_tokens)[:, None].expand(num_tokens, HIDDEN).float()


SUMS = {1: 10.0, 2: 110.0, 3: 1110.0}  # what the layers up to this one have added


@pytest.mark.parametrize("calls_forward", [False, True], ids=["called", "forward called"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prefill_gives_the_last_row_of_each_request_and_a_decode_every_row(kind: str, calls_forward: bool) -> None:
    model, capture = captured(kind, calls_forward)
    batch = forward_batch([2, 3], led=object())
    capture.begin(batch)
    model(embeddings(5), batch)
    expected = [[1 + SUMS[layer], 4 + SUMS[layer]] for layer in LAYERS]
    assert capture.latents(3, 2, None)[:, :, 0].tolist() == expected
    assert capture.latents(2, 2, torch.tensor([1]))[:, :, 1].tolist() == [[4 + SUMS[3]], [4 + SUMS[1]]]
    decode = forward_batch(num_tokens=4, led=object())
    capture.begin(decode)
    model(embeddings(4), decode)
    assert capture.latents(3, 4, None)[:, :, 0].tolist() == [
        [row + SUMS[layer] for row in range(4)] for layer in LAYERS
    ]
    assert capture.latents(3, 3, None).shape == (3, 3, HIDDEN), "a padded batch"


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_goes_on_with_what_it_had(kind: str) -> None:
    """The model computes the same, tensor for tensor, with and without the capture."""
    plain = Model(KINDS[kind][0])
    model, _ = captured(kind)
    outputs: list[list[Any]] = [[], []]
    for kept, each in zip(outputs, (plain, model), strict=True):
        for layer in each.model.layers:
            before = layer.forward

            def spy(*args: Any, before: Any = before, kept: list[Any] = kept, **kwargs: Any) -> Any:
                kept.append(before(*args, **kwargs))
                return kept[-1]

            layer.forward = spy
        each(embeddings(4), forward_batch(num_tokens=4, led=object()))
    for one, other in zip(*outputs, strict=True):
        pair = (one, other) if isinstance(one, tuple) else ((one,), (other,))
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_sum_over_ranks_that_a_layer_owes_is_done_once_and_the_next_layer_gets_it() -> None:
    class Owing(StreamLayer):
        def forward(self, positions: Tensor, hidden: Any, batch: Batch) -> Any:
            stream = batch.residual_stream
            if stream.residual is None:
                stream.write(hidden.clone())
            elif stream.pending is not None:
                stream.write(stream.complete(hidden) + stream.residual)
            return stream.record(contribution(self.number, stream.residual), PLAIN_ADD, declared_sum=declared)

    calls: list[float] = []

    def all_reduce(value: Tensor) -> Tensor:
        calls.append(float(value[0, 0]))
        return value * 2  # two ranks with the same share

    declared = DeclaredSum("tp", all_reduce)  # type: ignore[arg-type]
    model = Model(Owing)
    capture = Capture(model, LAYERS, NUM_LAYERS, raise_fault)
    capture.allocate(MAX_ROWS, HIDDEN, torch.float32, "cpu")
    capture.ending = "stream"
    model(embeddings(2), forward_batch(num_tokens=2, led=object()))
    assert capture.states[:, :2, 0].tolist() == [[row + 2 * SUMS[layer] for row in range(2)] for layer in LAYERS]
    assert calls == [10.0, 100.0, 1000.0], "each once; the last layer's is the final norm's"


def test_a_contribution_that_is_not_added_is_a_fault() -> None:
    class Scaled(StreamLayer):
        def forward(self, positions: Tensor, hidden: Any, batch: Batch) -> Any:
            stream = batch.residual_stream
            if stream.residual is None:
                stream.write(hidden.clone())
            stream.pending = None
            return stream.record(hidden.clone(), SimpleNamespace(bind=None, is_plain_add=False))

    model = Model(Scaled)
    capture = Capture(model, LAYERS, NUM_LAYERS, raise_fault)
    capture.allocate(MAX_ROWS, HIDDEN, torch.float32, "cpu")
    capture.ending = "stream"
    with pytest.raises(CaptureError, match="SimpleNamespace, not by adding"):
        model(embeddings(2), forward_batch(num_tokens=2, led=object()))


def test_a_graph_of_a_prefill_reads_the_rows_of_the_batch_that_replays_it() -> None:
    """At its capture there is one dummy request; a replay runs the same copies with other positions in the buffer."""
    model, capture = captured("stream")
    recorded: list[Callable[[], None]] = []
    store = capture.store

    def record(*args: Any) -> None:
        store(*args)
        recorded.append(lambda: store(*args))

    capture.store = record  # type: ignore[method-assign]
    model(embeddings(5), forward_batch([5]))  # the capture: the engine's own batch has no sampling_info
    assert capture.buffer is not None and capture.buffer[0, 0, 0] == 0 + SUMS[3]
    assert len(recorded) == 3
    for lengths in ([1, 1, 3], [4], [1, 1, 1, 1, 1]):
        capture.begin(forward_batch(lengths, led=object()))
        for copy in recorded:  # no Python of the model runs
            copy()
        last = torch.tensor(lengths).cumsum(0) - 1
        expected = [[row + SUMS[layer] for row in last.tolist()] for layer in LAYERS]
        assert capture.latents(3, len(lengths), None)[:, :, 0].tolist() == expected


def test_positions_of_an_earlier_prefill_do_not_reach_into_a_smaller_graph() -> None:
    model, capture = captured("stream")
    capture.begin(forward_batch([3, 2], led=object()))
    capture.begin(forward_batch([2], led=object()))
    model(embeddings(2), forward_batch([2]))  # two rows, of which the second must exist
    capture.begin(forward_batch([3, 2], led=object()))
    capture.end_start()
    model(embeddings(2), forward_batch([2]))


def test_the_rows_of_verified_draft_tokens_are_all_kept() -> None:
    """Its lengths are those of an extend: so many draft tokens for each request."""
    model, capture = captured("sum")
    batch = forward_batch([3, 3], is_verify=True, led=object())
    capture.begin(batch)
    model(embeddings(6), batch)
    assert capture.latents(1, 6, None)[0, :, 0].tolist() == [row + SUMS[3] for row in range(6)]


def test_a_batch_without_led_rows_costs_nothing_and_dummies_are_kept() -> None:
    model, capture = captured("stream")
    model(embeddings(3), forward_batch(num_tokens=3, led=None))
    assert not capture.states.any()
    model(embeddings(3), forward_batch(num_tokens=3))
    assert capture.states[:, :3].all()


def test_nothing_is_read_before_the_ending_is_known() -> None:
    model, capture = captured("stream")
    capture.ending = None
    assert not capture.is_ready
    model(embeddings(3), forward_batch(num_tokens=3))
    assert not capture.states.any()


def test_rows_that_do_not_fit_are_reported_and_the_buffer_stays() -> None:
    _, capture = captured("stream")
    place = capture.states.data_ptr()
    with pytest.raises(CaptureError, match="a batch of 7 rows does not fit LED's buffer of 6 rows"):
        capture.store(0, (embeddings(7),), forward_batch(num_tokens=7))
    with pytest.raises(CaptureError, match="returned 3 rows for 4 tokens"):  # a rank's share of them
        capture.store(0, (embeddings(3),), forward_batch(num_tokens=4))
    with pytest.raises(CaptureError, match="is 4 wide, the model's hidden size is 2"):
        capture.store(0, (torch.ones(6, 4),), forward_batch(num_tokens=6))
    with pytest.raises(CaptureError, match="prefill of 7 requests does not fit LED's 6 rows"):
        capture.begin(forward_batch([1] * 7))
    capture.begin(forward_batch([1, 8], led=object()))
    capture.store(0, (embeddings(9),), forward_batch([1, 8], led=object()))  # a prompt longer than the buffer
    assert capture.states[0, :2, 0].tolist() == [0, 8]
    assert capture.states.data_ptr() == place and capture.states.shape == (3, 6, 2)


def test_a_fault_leaves_the_layers_value_to_the_engine() -> None:
    faults: list[Any] = []
    model = Model(StreamLayer)
    capture = Capture(model, LAYERS, NUM_LAYERS, faults.append)
    capture.allocate(1, HIDDEN, torch.float32, "cpu")  # too small
    capture.ending = "stream"
    batch = forward_batch(num_tokens=2, led=object())
    model(embeddings(2), batch)
    assert faults == [batch] * 3


def test_the_decoder_is_the_outermost_list_of_so_many_layers() -> None:
    model = Model(StreamLayer)
    capture = Capture(model, (1,), NUM_LAYERS, raise_fault)
    assert capture.decoder is model.model.layers and capture.decoder_name == "model.layers"
    with pytest.raises(CaptureError, match=r"decoder of Model: lists of 5 layers: none\. Start with --led-max-depth 1"):
        Capture(model, (1,), 5, raise_fault)
    model.model.other = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS))
    with pytest.raises(CaptureError, match=r"lists of 4 layers: model\.layers, model\.other"):
        Capture(model, (1,), NUM_LAYERS, raise_fault)


def test_a_model_that_cannot_be_captured_serves_depth_1() -> None:
    """The way out that the refusal names: nothing is asked of the model, and there are no latents to look at."""
    none = Capture(nn.Linear(2, 2), (), 12, raise_fault)
    with pytest.raises(CaptureError, match="no layer is captured"):
        assert none.states
    none.allocate(4, 3, torch.float32, "cpu")
    assert none.is_ready
    assert none.latents(0, 2, None).shape == (0, 2, 3)
    assert none.latents(0, 2, torch.tensor([1])).shape == (0, 1, 3)


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 9])
def test_rows_of_a_decode_step_beside_ranks_that_prefill(num_tokens: int) -> None:
    """Data-parallel attention: the engine may turn them into prefills of a token each, after `begin`."""
    model, capture = captured("first")
    capture.begin(forward_batch([4, 2], led=object()))
    decode = forward_batch(num_tokens=num_tokens, led=object())
    decode.global_num_tokens_cpu = [num_tokens, 40]
    capture.begin(decode)
    num_rows = min(num_tokens, MAX_ROWS)
    padded = forward_batch([1] * num_rows + [3], led=object())
    model(embeddings(num_rows + 3), padded)
    expected = [row + SUMS[3] for row in range(num_rows)]
    assert capture.latents(1, num_rows, None)[0, :, 0].tolist() == expected
    assert capture.buffer is not None and (capture._last_rows is None or capture._last_rows.max() < max(num_rows, 1))


def test_layers_of_other_pipeline_stages() -> None:
    """A stage has the whole list, with placeholders, and captures its own layers alone."""
    model = Model(FirstLayer, calls_forward=False)
    model.model.layers[0] = model.model.layers[1] = PPMissingLayer()
    capture = Capture(model, (4, 3), NUM_LAYERS, raise_fault)
    assert capture.indices_here == [2, 3]
    with pytest.raises(CaptureError, match=r"layers \[1, 2\] are not in this process"):
        Capture(model, (3, 2, 1), NUM_LAYERS, raise_fault)
