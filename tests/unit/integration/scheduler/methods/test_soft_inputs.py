"""The embedding lookup: mixtures for soft rows of a decode step, the engine's own for everything else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from led_sglang.config.fields import MAX_SOFT_TOP_K
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.methods.soft_inputs import SoftInputs
from led_sglang.integration.soft_support import is_soft_enabled
from tests.unit.integration.fakes import CLOSE_ID, EmbeddingModel, forward_mode, raise_fault

CONFIG = ServerConfig(methods=("led", "soft_thinking"), open_ids=(6,), close_ids=(CLOSE_ID,), num_layers=4)
NUM_SLOTS = 5


def runner(model: nn.Module | None = None) -> Any:
    return SimpleNamespace(
        model=model or EmbeddingModel(),
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(NUM_SLOTS, 1)),
        server_args=SimpleNamespace(),
    )


def batch(slots: list[int], is_decode: bool = True) -> Any:
    return SimpleNamespace(req_pool_indices=torch.tensor(slots), forward_mode=forward_mode(is_decode))


@pytest.fixture
def engine() -> tuple[SoftInputs, EmbeddingModel, Tensor]:
    model = EmbeddingModel()
    table = model.model.embed_tokens.weight.detach().clone()
    inputs = SoftInputs(runner(model), CONFIG, raise_fault)
    inputs.write(
        torch.tensor([3, 1]),
        torch.tensor([[4, 5], [8, 2]]),
        torch.tensor([[0.75, 0.25], [0.5, 0.5]]),
        torch.tensor([True, False]),
        torch.tensor([0, 2]),
    )
    return inputs, model, table


def run(model: EmbeddingModel, ids: list[int], forward_batch: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.forward(torch.tensor(ids), torch.arange(len(ids)), forward_batch)
        return out


def test_only_soft_slots_are_mixed(engine: tuple[SoftInputs, EmbeddingModel, Tensor]) -> None:
    _, model, table = engine
    out = run(model, [4, 4, 4, 8, 4], batch([0, 3, 2, 1, 4]))
    torch.testing.assert_close(out[1], 0.75 * table[4] + 0.25 * table[5])
    for row, token in ((0, 4), (2, 4), (3, 8), (4, 4)):  # slot 1 has closed its phase: its lookup is plain, bit for bit
        assert torch.equal(out[row], table[token])


@pytest.mark.parametrize(("slots", "num_soft"), [([0, 2, 1], 0), ([0, 3, 2], 1), ([3, 3, 4, 1], 2)])
@pytest.mark.parametrize("allows_dynamic_shapes", [True, False])
def test_where_rows_may_be_counted_only_soft_ones_are_looked_up_again(
    slots: list[int], num_soft: int, allows_dynamic_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch without them nothing is, beside the engine's own rows: no lookup, and so no sum over ranks."""
    model, num_ids = EmbeddingModel(), []
    look_up = model.model.embed_tokens.forward

    def counted(ids: Tensor) -> Tensor:
        num_ids.append(ids.numel())
        return look_up(ids)

    monkeypatch.setattr(model.model.embed_tokens, "forward", counted)
    inputs = SoftInputs(runner(model), CONFIG, raise_fault)
    inputs.allows_dynamic_shapes = allows_dynamic_shapes
    inputs.is_soft[3] = True
    run(model, [4] * len(slots), batch(slots))
    num_mixed = num_soft if allows_dynamic_shapes else len(slots)
    assert num_ids == [len(slots), *([num_mixed * MAX_SOFT_TOP_K] if num_mixed else [])]


@pytest.mark.parametrize("case", ["extend", "forgotten", "outside a step"])
def test_everything_else_is_the_engines_lookup(case: str, engine: tuple[SoftInputs, EmbeddingModel, Tensor]) -> None:
    inputs, model, table = engine
    ids = [4, 8]
    if case == "outside a step":
        out = model.model.embed_tokens(torch.tensor(ids))
    elif case == "extend":  # of a request that was retracted: its slot still holds the last mixture
        out = run(model, ids, batch([3, 3], is_decode=False))
    else:
        inputs.forget(torch.tensor([0, 3]))
        out = run(model, ids, batch([3, 3]))
    assert torch.equal(out, table[ids])


def test_a_replay_follows_the_slots_that_it_is_given(engine: tuple[SoftInputs, EmbeddingModel, Tensor]) -> None:
    """What a CUDA graph does: operations recorded once for static tensors, run again with other contents.

    Recorded as a trace of tensor operations; the dummy rows of a capture sit in slot 0 and are not soft.
    """
    inputs, model, table = engine
    inputs.allows_dynamic_shapes = False
    static = batch([0, 0, 0])
    ids, positions = torch.zeros(3, dtype=torch.int64), torch.arange(3)

    def step(ids: Tensor, slots: Tensor, table_ids: Tensor, weights: Tensor, is_soft: Tensor) -> Tensor:
        static.req_pool_indices, inputs.ids, inputs.weights, inputs.is_soft = slots, table_ids, weights, is_soft
        out: Tensor = model.forward(ids, positions, static)
        return out

    tensors = (inputs.ids, inputs.weights, inputs.is_soft)
    graph = make_fx(step)(ids, static.req_pool_indices, *(torch.zeros_like(tensor) for tensor in tensors))
    with torch.no_grad():
        out = graph(torch.tensor([4, 8, 4]), torch.tensor([3, 1, 0]), *tensors)
    torch.testing.assert_close(out[0], 0.75 * table[4] + 0.25 * table[5])
    assert torch.equal(out[1], table[8]) and torch.equal(out[2], table[4])


def test_on_a_gpu_nothing_is_read_and_no_shape_depends_on_data() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        model = EmbeddingModel()
        fake = SimpleNamespace(**{**vars(runner(model)), "device": "cuda"})
        inputs = SoftInputs(fake, CONFIG, raise_fault)
        slots = torch.zeros(4, dtype=torch.int64)
        step = SimpleNamespace(req_pool_indices=slots, forward_mode=forward_mode(True))
        assert model.forward(slots, slots, step).shape == (4, 3)
        flags = torch.zeros(4, dtype=torch.bool)
        inputs.write(slots, torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 8), flags, slots)
        inputs.forget(slots)


def test_a_slot_given_to_another_request_keeps_no_weights(engine: tuple[SoftInputs, EmbeddingModel, Tensor]) -> None:
    inputs, model, table = engine
    wide = torch.full((1, 4), 0.25)
    slot, one = torch.tensor([3]), torch.tensor([0])
    inputs.write(slot, torch.tensor([[1, 2, 3, 4]]), wide, torch.tensor([True]), one)
    inputs.write(slot, torch.tensor([[9]]), torch.ones(1, 1), torch.tensor([True]), one)
    assert inputs.weights[3].tolist() == [1.0] + [0.0] * (MAX_SOFT_TOP_K - 1)
    torch.testing.assert_close(run(model, [0], batch([3]))[0], table[9])


def test_a_fault_in_the_model_leaves_no_batch_behind(engine: tuple[SoftInputs, EmbeddingModel, Tensor]) -> None:
    _, model, table = engine
    with pytest.raises(IndexError):
        run(model, [99], batch([3]))
    assert torch.equal(model.model.embed_tokens(torch.tensor([4])), table[[4]])


def test_half_precision_is_mixed_in_float32() -> None:
    model = EmbeddingModel().to(torch.bfloat16)
    table = model.model.embed_tokens.weight.detach().clone()
    inputs = SoftInputs(runner(model), CONFIG, raise_fault)
    ids, weights = torch.arange(8)[None], torch.full((1, 8), 0.125)
    inputs.write(torch.tensor([0]), ids, weights, torch.tensor([True]), torch.tensor([0]))
    out = run(model, [0], batch([0]))
    assert torch.equal(out[0], (table[:8].float() * 0.125).sum(0).bfloat16())


def test_what_cannot_be_mixed_is_refused() -> None:
    mixed = runner()
    mixed.server_args.enable_mixed_chunk = True
    with pytest.raises(CaptureError, match="--enable-mixed-chunk"):
        SoftInputs(mixed, CONFIG, raise_fault)
    with pytest.raises(CaptureError, match="has 2"):
        SoftInputs(runner(), ServerConfig(methods=("soft_thinking",), close_ids=(7, 8)), raise_fault)
    with pytest.raises(CaptureError, match="embed_tokens in Linear"):
        SoftInputs(runner(nn.Linear(2, 2)), CONFIG, raise_fault)


def test_soft_is_enabled_by_either_name() -> None:
    assert is_soft_enabled(ServerConfig(methods=("led", "soft_thinking_gumbel")))
    assert is_soft_enabled(ServerConfig(methods=("soft_thinking",)))
    assert not is_soft_enabled(ServerConfig(methods=("led", "dola", "confident")))


def test_a_fault_while_mixing_feeds_tokens_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    model = EmbeddingModel()
    table = model.model.embed_tokens.weight.detach().clone()
    inputs = SoftInputs(runner(model), CONFIG, reported.append)
    monkeypatch.setattr(inputs, "_mix", lambda *_: 1 / 0)
    served = batch([3])
    assert torch.equal(model(torch.tensor([4]), None, served), table[[4]])
    assert reported == [served]
