"""The embedding lookup: mixtures for soft rows of a decode step, the engine's own for everything else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from led_sglang.integration.batch import LedBatch
from led_sglang.integration.capture import CaptureError
from led_sglang.integration.soft import SoftInputs, _refuse, is_soft_enabled
from led_sglang.params import MAX_SOFT_TOP_K, ServerConfig
from tests.unit.integration.fakes import CLOSE_ID, batch_of, forward_mode, sampling_info, seat

CONFIG = ServerConfig(methods=("led", "soft_thinking"), open_ids=(6,), close_ids=(CLOSE_ID,), num_layers=4)
NUM_SLOTS = 5


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: Any) -> Any:
        return self.model.embed_tokens(input_ids)


def runner(model: nn.Module | None = None, graphs: bool = False) -> Any:
    return SimpleNamespace(
        model=model or Model(),
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(NUM_SLOTS, 1)),
        server_args=SimpleNamespace(disable_cuda_graph=not graphs),
    )


def batch(led: LedBatch | None, slots: list[int], is_decode: bool = True) -> Any:
    info = SimpleNamespace(led=None) if led is None else sampling_info(led)
    return SimpleNamespace(
        sampling_info=info, req_pool_indices=torch.tensor(slots), forward_mode=forward_mode(is_decode)
    )


@pytest.fixture
def engine() -> tuple[SoftInputs, Model, Tensor]:
    model = Model()
    table = model.model.embed_tokens.weight.detach().clone()
    inputs = SoftInputs(runner(model), CONFIG)
    inputs.write(
        torch.tensor([3, 1]),
        torch.tensor([[4, 5], [8, 2]]),
        torch.tensor([[0.75, 0.25], [0.5, 0.5]]),
        torch.tensor([True, False]),
        torch.tensor([0, 2]),
    )
    return inputs, model, table


def run(model: Model, ids: list[int], forward_batch: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.forward(torch.tensor(ids), torch.arange(len(ids)), forward_batch)
        return out


def test_only_soft_rows_are_mixed(engine: tuple[SoftInputs, Model, Tensor]) -> None:
    _, model, table = engine
    led = batch_of(seat("led"), seat("soft_thinking"), seat(None), seat("soft_thinking"), seat("dola"))
    out = run(model, [4, 4, 4, 8, 4], batch(led, [0, 3, 2, 1, 4]))
    torch.testing.assert_close(out[1], 0.75 * table[4] + 0.25 * table[5])
    for row, token in ((0, 4), (2, 4), (3, 8), (4, 4)):  # slot 1 has closed its phase: its lookup is plain, bit for bit
        assert torch.equal(out[row], table[token])


@pytest.mark.parametrize("case", ["extend", "nobody of ours", "no soft row", "outside a step"])
def test_everything_else_is_the_engines_lookup(case: str, engine: tuple[SoftInputs, Model, Tensor]) -> None:
    _, model, table = engine
    soft = batch_of(seat("soft_thinking"), seat("soft_thinking"))
    ids = [4, 8]
    if case == "outside a step":
        out = model.model.embed_tokens(torch.tensor(ids))
    elif case == "extend":  # of a request that was retracted: its slot still holds the last mixture
        out = run(model, ids, batch(soft, [3, 3], is_decode=False))
    else:
        led = batch_of(seat("dola"), seat("led")) if case == "no soft row" else None
        out = run(model, ids, batch(led, [3, 3]))
    assert torch.equal(out, table[ids])


def test_a_slot_given_to_another_request_keeps_no_weights(engine: tuple[SoftInputs, Model, Tensor]) -> None:
    inputs, model, table = engine
    wide = torch.full((1, 4), 0.25)
    slot, one = torch.tensor([3]), torch.tensor([0])
    inputs.write(slot, torch.tensor([[1, 2, 3, 4]]), wide, torch.tensor([True]), one)
    inputs.write(slot, torch.tensor([[9]]), torch.ones(1, 1), torch.tensor([True]), one)
    assert inputs.weights[3].tolist() == [1.0] + [0.0] * (MAX_SOFT_TOP_K - 1)
    led = batch_of(seat("soft_thinking"))
    torch.testing.assert_close(run(model, [0], batch(led, [3]))[0], table[9])


def test_a_fault_in_the_model_leaves_no_batch_behind(engine: tuple[SoftInputs, Model, Tensor]) -> None:
    _, model, table = engine
    led = batch_of(seat("soft_thinking"))
    with pytest.raises(IndexError):
        run(model, [99], batch(led, [3]))
    assert torch.equal(model.model.embed_tokens(torch.tensor([4])), table[[4]])


def test_half_precision_is_mixed_in_float32() -> None:
    model = Model().to(torch.bfloat16)
    table = model.model.embed_tokens.weight.detach().clone()
    inputs = SoftInputs(runner(model), CONFIG)
    ids, weights = torch.arange(8)[None], torch.full((1, 8), 0.125)
    inputs.write(torch.tensor([0]), ids, weights, torch.tensor([True]), torch.tensor([0]))
    out = run(model, [0], batch(batch_of(seat("soft_thinking")), [0]))
    assert torch.equal(out[0], (table[:8].float() * 0.125).sum(0).bfloat16())


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(CaptureError, match="--disable-cuda-graph"):
        _refuse(runner(graphs=True), CONFIG, torch.device("cuda"))
    _refuse(runner(graphs=False), CONFIG, torch.device("cuda"))
    mixed = runner()
    mixed.server_args.enable_mixed_chunk = True
    with pytest.raises(CaptureError, match="--enable-mixed-chunk"):
        SoftInputs(mixed, CONFIG)
    with pytest.raises(CaptureError, match="has 2"):
        SoftInputs(runner(), ServerConfig(methods=("soft_thinking",), close_ids=(7, 8)))
    with pytest.raises(CaptureError, match="embed_tokens in Linear"):
        SoftInputs(runner(nn.Linear(2, 2)), CONFIG)


def test_soft_is_enabled_by_either_name() -> None:
    assert is_soft_enabled(ServerConfig(methods=("led", "soft_thinking_gumbel")))
    assert is_soft_enabled(ServerConfig(methods=("soft_thinking",)))
    assert not is_soft_enabled(ServerConfig(methods=("led", "dola", "confident")))
