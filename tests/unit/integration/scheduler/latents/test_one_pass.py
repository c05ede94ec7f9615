"""The one-pass form's static buffers, and the head that the engine multiplies itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.lm_head import build_head, why_no_one_pass
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.ops import Head, LedRows, StepInputs
from led_sglang.ops.backend import Backend
from led_sglang.ops.backends import one_pass, torch_step
from led_sglang.ops.backends.lm_head import latent_probs, layer_logits
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.integration.fakes import decode_graph_sizes

CPU = torch.device("cpu")
H, V, J = 16, 40, 3


DYNAMIC, FIXED = (TorchBackend(allows_dynamic_shapes=value) for value in (True, False))  # on a CPU, as on a GPU


def state_of(form: str = "one_pass", backend: Backend = DYNAMIC, max_rows: int = 12) -> OnePassState:
    return OnePassState(form, backend, J, max_rows, CPU)


def head_of(**changes: Any) -> Head:
    torch.manual_seed(0)
    return Head(torch.randn(V, H), V, **changes)


@pytest.mark.parametrize("is_gpu_path", [False, True])
def test_a_padded_graph_serves_the_real_rows_alone(is_gpu_path: bool) -> None:
    """Eight rows in the graph, five in the batch, four of them ours, one of those left out."""
    backend = FIXED if is_gpu_path else DYNAMIC
    one_pass_state, head, buffer = state_of(backend=backend), head_of(), torch.randn(J + 1, 12, H)
    buffer[:, 5:] = torch.nan  # padding holds what an earlier batch left
    index = torch.tensor([0, 1, 3, 4])
    params = LedRows.uniform(4, depth=J + 1, temperature=torch.tensor([0.5, 1.0, 2.0, 0.7]))
    rows: Any = SimpleNamespace(index=index, edited=None, params=params)
    zeros = torch.zeros(4, dtype=torch.float64)
    inputs = StepInputs(torch.tensor([True, True, False, True]), zeros, zeros)
    one_pass_state.on_graph_warmup(8, is_captured=True)
    one_pass_state.clear()
    one_pass_state.fill_mask(rows, inputs, 5)
    hidden = torch.randn(8, H)
    logits = one_pass_state.through(lambda h: h @ head.weight.T, hidden, head, buffer)
    torch.testing.assert_close(logits, hidden @ head.weight.T)
    assert one_pass_state.lse_ready.tolist() == [True, True, False, False, True] + [False] * 7
    for row, tau in ((0, 0.5), (1, 1.0), (4, 0.7)):
        expected = (buffer[:J, row] @ head.weight.T / tau).logsumexp(-1)
        torch.testing.assert_close(one_pass_state.lse[:, row], expected)


def test_the_form_is_that_of_the_graph_and_beyond_the_largest_that_of_the_batch() -> None:
    one_pass_state = state_of("auto", FIXED, max_rows=300)
    assert one_pass_state.status()["one_pass_up_to_rows"] == one_pass.MAX_ROWS
    for size in (8, 32, 64):
        one_pass_state.on_graph_warmup(size, is_captured=True)
        assert one_pass_state.is_one_pass == (size <= one_pass.MAX_ROWS)
    forms = {num_rows: one_pass_state.form(num_rows) for num_rows in (1, 32, 33, 64, 65, 256)}
    assert forms == {n: "one_pass" if n <= 32 else "coin_first" for n in forms}
    assert one_pass_state.status()["one_pass_up_to_rows"] == 32


def test_a_warm_up_that_is_no_capture_makes_no_graph() -> None:
    one_pass_state = state_of()
    one_pass_state.on_graph_warmup(8, is_captured=False)
    assert one_pass_state.is_one_pass and one_pass_state.graph_sizes == []
    one_pass_state.on_graph_warmup(4096, is_captured=False)  # a warm-up of more rows than any batch
    assert not one_pass_state.is_one_pass


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("max_rows", [8, 32, 48, 51, 56, 256, 512])
@pytest.mark.parametrize("form", ["auto", "one_pass", "coin_first"])
def test_a_warm_up_has_the_form_of_its_capture(form: str, max_rows: int, is_padded: bool) -> None:
    """A kernel cannot be loaded while a stream is captured: the warm-ups must have launched what the capture does.

    In SGLang's order: from the largest size down, two warm-ups, then the capture.
    """
    one_pass_state = state_of(form, FIXED, max_rows=max_rows + 2)
    forms = {}
    for size in reversed(decode_graph_sizes(max_rows, is_padded)):
        decided = []
        for is_captured in (False, False, True):
            one_pass_state.on_graph_warmup(size, is_captured)
            decided.append(one_pass_state.is_one_pass)
        assert len(set(decided)) == 1, f"{size} rows: warm-ups and capture {decided}"
        forms[size] = decided[0]
    for size, is_one_pass in forms.items():
        assert (one_pass_state.form(size) == "one_pass") == is_one_pass, "a replay finds the form of its graph"


def test_a_fault_inside_a_capture_stops_the_start() -> None:
    """The capture is invalid from there on: going on with the engine's product would hide why."""
    one_pass_state, head = state_of(), head_of()
    one_pass_state.on_graph_warmup(2, is_captured=True)
    one_pass_state.mask[:2] = True
    with pytest.raises(CaptureError, match=r"graph of 2 rows was captured: RuntimeError.*--led-form coin_first"):
        one_pass_state.through(lambda h: h @ head.weight.T, torch.randn(2, H), head, torch.randn(J, 12, H + 1))
    one_pass_state.clear()
    one_pass_state.mask[:2] = True
    one_pass_state.through(lambda h: h @ head.weight.T, torch.randn(2, H), head, torch.randn(J, 12, H + 1))
    assert one_pass_state.fault is not None, "while serving it is told, and the engine's product is used"


def test_a_fault_gives_the_engines_product_and_is_reported() -> None:
    one_pass_state, head = state_of(), head_of()
    hidden = torch.randn(2, H)
    one_pass_state.mask[:2] = True
    logits = one_pass_state.through(lambda h: h @ head.weight.T, hidden, head, torch.randn(J, 12, H + 1))
    assert torch.equal(logits, hidden @ head.weight.T)
    assert one_pass_state.fault and "RuntimeError" in one_pass_state.fault and one_pass_state.form(1) == "coin_first"


ONE_RANK: Any = SimpleNamespace(world_size=1)


class QuantisedHead(nn.Module):
    """As much of a quantised ParallelLMHead as we read: packed weights and a method that multiplies with them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.qweight = nn.Parameter((weight * 100).round().to(torch.int8), requires_grad=False)
        self.num_embeddings_per_partition = len(weight)


def processor(head: QuantisedHead, **changes: Any) -> Any:
    fields = {"vocab_size": V, "logit_scale": None, "final_logit_softcapping": None} | changes
    return SimpleNamespace(_compute_lm_head=lambda rows, lm_head: rows @ (lm_head.qweight.float() / 100).T, **fields)


@pytest.mark.parametrize("changes", [{}, {"logit_scale": 0.5, "final_logit_softcapping": 4.0}])
def test_a_quantised_head_is_multiplied_by_the_engine(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("led_sglang.ops.backends.lm_head.TILE_ELEMENTS", 3 * V)  # a few rows at a time
    quantised = QuantisedHead(torch.randn(V, H))
    head = build_head(processor(quantised, **changes), quantised, None, ONE_RANK, torch.float32)
    assert head.project is not None and "QuantisedHead" in str(why_no_one_pass(None, quantised, head))
    same = Head(quantised.qweight.float() / 100, V, scale=head.scale, softcap=head.softcap)
    latents, tau = torch.randn(J, 5, H), torch.linspace(0.3, 2, 5)[:, None]
    ids = torch.randint(V, (5, 4))
    ours, truth = (latent_probs(latents, ids, h, tau, None) for h in (head, same))
    torch.testing.assert_close(ours, truth)
    assert torch_step.latent_probs is latent_probs


def test_a_lora_head_is_refused() -> None:
    lora = SimpleNamespace(set_lora=True, apply_lora=None, weight=torch.zeros(V, H))
    with pytest.raises(CaptureError, match="another adapter to each row"):
        build_head(processor(QuantisedHead(torch.zeros(V, H))), lora, None, ONE_RANK, torch.float32)


class DenseHead(nn.Module):
    """As much of a ParallelLMHead as we read."""

    def __init__(self, num_rows: int = V, bias: Tensor | None = None, shard: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_rows, H), requires_grad=False)
        self.bias = bias
        if shard is not None:
            self.shard_indices = shard


def dense_processor(**changes: Any) -> Any:
    def product(rows: Tensor, lm_head: Any) -> Tensor:
        return rows.to(lm_head.weight.dtype) @ lm_head.weight.T  # SGLang's, which knows no bias

    fields = {"vocab_size": V, "logit_scale": None, "final_logit_softcapping": None} | changes
    return SimpleNamespace(_compute_lm_head=product, **fields)


def test_a_bias_that_the_engine_leaves_out_is_left_out() -> None:
    lm_head = DenseHead(bias=torch.randn(V))
    head = build_head(dense_processor(), lm_head, None, ONE_RANK, torch.float32)
    rows = torch.randn(3, H)
    torch.testing.assert_close(layer_logits(rows, head, 0, V), dense_processor()._compute_lm_head(rows, lm_head))


def test_an_embedding_that_every_rank_has_whole_is_no_shard() -> None:
    two: Any = SimpleNamespace(world_size=2)
    whole = build_head(dense_processor(), DenseHead(), None, two, torch.float32)
    assert (whole.first_id, whole.num_rows, whole.all_gather) == (0, V, None)
    shard = SimpleNamespace(org_vocab_start_index=V // 2, num_org_elements=V // 2)
    half = build_head(dense_processor(), DenseHead(V // 2, shard=shard), None, two, torch.float32)
    assert (half.first_id, half.num_rows) == (V // 2, V // 2) and half.all_gather is not None
    replicated = DenseHead(V, shard=SimpleNamespace(org_vocab_start_index=0, num_org_elements=V))
    replicated.tp_size = 1
    assert build_head(dense_processor(), replicated, None, two, torch.float32).all_gather is None


def test_a_head_in_another_dtype_is_multiplied_by_the_engine() -> None:
    head = build_head(dense_processor(), DenseHead(), None, ONE_RANK, torch.bfloat16)
    assert head.project is not None
    rows = torch.randn(3, H)
    torch.testing.assert_close(layer_logits(rows.bfloat16(), head, 0, V), rows.bfloat16().float() @ head_weight(head))


def head_weight(head: Head) -> Tensor:
    assert head.project is not None
    return head.project(torch.eye(H))


def test_what_a_model_multiplies_the_norms_output_with_is_in_the_scale() -> None:
    head = build_head(dense_processor(logit_scale=0.5), DenseHead(), None, ONE_RANK, torch.float32, 4.0)
    assert head.scale == 2.0
