"""Run under TRITON_INTERPRET=1 by test_self_test.py: what the start check makes of right kernels, and of wrong ones."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops import Head, self_test
from led_sglang.ops.kernels import candidates, final_layer, lm_head

CPU = torch.device("cpu")
NUM_LAYERS, VOCAB, HIDDEN = 2, 60, 24
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def remembered(function: Callable[..., Any], out: int | None = None) -> Callable[..., Any]:
    """The same; equal inputs are computed once, for the interpreter takes seconds. `out`: an argument is written."""
    known: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        inputs = [arg for place, arg in enumerate(args) if place != out]
        key = tuple(map(content, inputs))
        if key not in known:
            known[key] = function(*args), None if out is None else args[out].clone()
        result, written = known[key]
        if out is not None:
            args[out].copy_(written)
        return result.clone() if isinstance(result, Tensor) else result

    return call


def content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.shape, bytes(value.contiguous().flatten().view(torch.uint8).tolist())
    if is_dataclass(value):
        return tuple(content(getattr(value, field.name)) for field in fields(value) if field.compare)
    return value if isinstance(value, (int, float, bool, type(None))) else id(value)


head_sums = remembered(lm_head.head_sums, out=3)
candidate_logits = remembered(candidates.candidate_logits)
final_rows = remembered(final_layer.final_rows)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_ROWS": 6, "NUM_LAYERS": NUM_LAYERS, "VOCAB": VOCAB, "HIDDEN": HIDDEN}.items():
        monkeypatch.setattr(self_test, name, value)
    monkeypatch.setattr(final_layer, "final_rows", final_rows)
    monkeypatch.setattr(lm_head, "head_sums", head_sums)
    monkeypatch.setattr(candidates, "candidate_logits", candidate_logits)
    monkeypatch.setattr(self_test, "MANY_ROWS", 8)  # of the small tile
    monkeypatch.setattr(lm_head, "SMALL_TILE", lm_head.SMALL_TILE._replace(rows=8, vocab=16))
    monkeypatch.setattr(lm_head, "LARGE_TILE", lm_head.LARGE_TILE._replace(rows=32, vocab=32))


def no_collective(packed: Tensor) -> Tensor:
    pytest.fail("the ranks are not asked")


def served_head(dtype: torch.dtype) -> Head:
    """This rank's rows of a head, with all that a head may have."""
    weight = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(3)) * 0.02
    bias = torch.linspace(-1, 1, VOCAB).to(dtype)
    parts = {"first_id": VOCAB, "all_gather": no_collective}
    return Head(weight.to(dtype), VOCAB - 7, bias=bias, scale=1.5, softcap=20.0, **parts)  # type: ignore[arg-type]


def faults(dtype: torch.dtype) -> list[str | None]:
    latents = torch.empty(NUM_LAYERS, 1, HIDDEN, dtype=dtype)
    return [
        self_test.fault_of("triton", CPU, dtype),
        self_test.fault_with("triton", served_head(dtype), latents, max_top_k=64),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def check_kernels_that_are_right_have_no_fault(dtype: torch.dtype) -> None:
    assert faults(dtype) == [None, None]


@pytest.mark.parametrize("dtype", DTYPES)
def check_a_head_that_the_engine_multiplies_has_no_fault(dtype: torch.dtype) -> None:
    weight = served_head(dtype).weight
    head = Head(torch.empty(VOCAB, 0), VOCAB, project=lambda rows: rows @ weight.T)
    assert self_test.fault_with("triton", head, torch.empty(NUM_LAYERS, 1, HIDDEN, dtype=dtype), 8) is None


def check_a_server_without_latents_has_no_fault() -> None:
    assert self_test.fault_with("triton", served_head(torch.bfloat16), torch.empty(0, 1, HIDDEN).bfloat16(), 8) is None


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda *args: candidate_logits(*args) + torch.tensor(factor).log()


CANDIDATES: dict[str, Callable[..., Tensor]] = {
    "twice the probability": scaled(2.0),
    "half the probability": scaled(0.5),
    "probability zero": scaled(0.0),
    "NaN": scaled(torch.nan),
    "rows in the wrong order": lambda *args: candidate_logits(*args).roll(1, 1),
    "layers in the wrong order": lambda *args: candidate_logits(*args).flip(0),
    "candidates in the wrong order": lambda *args: candidate_logits(*args).flip(2),
    "another layer": lambda latents, *rest: candidate_logits(latents.roll(1, 0), *rest),
    "no temperature": lambda latents, ids, head, tau, explore_mask: candidate_logits(
        latents, ids, head, tau**0, explore_mask
    ),
    "no soft cap": lambda h, ids, head, *rest: candidate_logits(h, ids, replace(head, softcap=None, scale=0.9), *rest),
}


def wrong_sums(change: Callable[[Tensor], Tensor], head: Callable[[Head], Head] = lambda head: head) -> Any:
    def sums(final: Tensor | None, latents: Any, served: Head, lse: Tensor) -> Tensor:
        product = head_sums(final, latents, head(served), lse)
        lse.copy_(change(lse))
        return product

    return sums


SUMS = {
    "half of the vocabulary": wrong_sums(lambda sums: sums, lambda head: replace(head, num_rows=head.num_rows // 2)),
    "twice the sum": wrong_sums(lambda sums: sums + torch.tensor(2.0).log()),
    "half the sum": wrong_sums(lambda sums: sums - torch.tensor(2.0).log()),
    "nothing": wrong_sums(torch.zeros_like),
    "rows in the wrong order": wrong_sums(lambda sums: sums.roll(1, 1)),
    "layers in the wrong order": wrong_sums(lambda sums: sums.flip(0)),
}
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": torch.zeros_like,
    "rows in the wrong order": lambda product: product.roll(1, 0),
    "tokens in the wrong order": lambda product: product.roll(1, 1),
    "one per cent more": lambda product: product * 1.02,
}


def is_seen(fault: str | None) -> bool:
    return fault is not None and "differs from plain torch by" in fault and "allowed" in fault


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CANDIDATES)
def check_wrong_candidates_are_seen(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "candidate_logits", CANDIDATES[name])
    for fault in faults(dtype):
        assert is_seen(fault), fault


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["coin_first", "one_pass"])
@pytest.mark.parametrize("name", SUMS)
def check_wrong_sums_are_seen(name: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one form alone: what that form calls has final rows, or has none."""

    def sums(final: Tensor | None, *rest: Any) -> Tensor:
        return (SUMS[name] if (final is None) == (form == "coin_first") else head_sums)(final, *rest)

    monkeypatch.setattr(lm_head, "head_sums", sums)
    for fault in faults(dtype):
        assert is_seen(fault) and f"its {form} form" in str(fault), fault


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PRODUCTS)
def check_a_wrong_product_is_seen(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def sums(final: Tensor | None, *rest: Any) -> Tensor:
        product = head_sums(final, *rest)
        return product if final is None else PRODUCTS[name](product)

    monkeypatch.setattr(lm_head, "head_sums", sums)
    for fault in faults(dtype):
        assert is_seen(fault) and "its head product" in str(fault), fault


def check_what_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "head_sums", None)
    for fault in faults(torch.bfloat16):
        assert "TypeError" in str(fault)
