"""Batched decode attention agrees with SGLang's loop over sequences, whatever their lengths and however it is cut."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from led_sglang import platform
from led_sglang.platform import attention

SLOTS, HEADS, KV_HEADS, SIZE = 512, 4, 2, 16


class Pool:
    """Keys and values of one layer."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values = (torch.randn(SLOTS, KV_HEADS, SIZE, generator=generator) for _ in range(2))

    def get_key_buffer(self, _: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, _: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, _: Any, where: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
        slots = getattr(where, "loc", None)
        slots = where[0] if slots is None else slots
        self.keys[slots], self.values[slots] = keys.view(-1, KV_HEADS, SIZE), values.view(-1, KV_HEADS, SIZE)


def decode_step(
    kind: type[Any], lengths: list[int], window: int = -1, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """One decode step of `kind`: writes a key and value for each sequence, then attends."""
    generator = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randperm(SLOTS, generator=generator) for _ in range(len(lengths) + 2)])
    requests = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
    seq_lens = torch.tensor(lengths)
    runner = SimpleNamespace(
        device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=table), token_to_kv_pool=Pool()
    )
    batch = SimpleNamespace(
        encoder_lens=None,
        forward_mode=SimpleNamespace(is_decode=lambda: True),
        seq_lens=seq_lens,
        req_pool_indices=requests,
        out_cache_loc=table[requests, seq_lens - 1],
    )
    layer = SimpleNamespace(
        layer_id=0, sliding_window_size=window, is_cross_attention=False, tp_q_head_num=HEADS, tp_k_head_num=KV_HEADS,
        qk_head_dim=SIZE, v_head_dim=SIZE, scaling=0.3,
    )  # fmt: skip
    q = torch.randn(len(lengths), HEADS * SIZE, generator=generator).to(dtype)
    k, v = (torch.randn(len(lengths), KV_HEADS * SIZE, generator=generator) for _ in range(2))
    backend = kind(runner)
    backend.init_forward_metadata(batch)
    return backend.forward_decode(q, k, v, layer, batch)


@pytest.mark.parametrize("lengths", [[1], [7], [5, 1, 40, 17], [300, 1, 2], [64] * 9])
@pytest.mark.parametrize("limit", [1 << 16, 80])
def test_agrees_with_the_loop(monkeypatch: pytest.MonkeyPatch, lengths: list[int], limit: int) -> None:
    monkeypatch.setattr(attention, "MAX_PADDED_TOKENS", limit)
    expected = decode_step(TorchNativeAttnBackend, lengths)
    torch.testing.assert_close(decode_step(attention.BatchedAttention, lengths), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("more", [{"window": 3}, {"dtype": torch.bfloat16}])
def test_what_it_cannot_do_goes_the_loops_way(more: dict[str, Any]) -> None:
    lengths = [5, 1, 40]
    expected = decode_step(TorchNativeAttnBackend, lengths, **more)
    assert torch.equal(decode_step(attention.BatchedAttention, lengths, **more), expected)


def test_parts_hold_every_row_once_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_PADDED_TOKENS", 100)
    lengths = torch.tensor([3, 50, 7, 1, 2, 40, 9])
    found = attention.parts(torch.arange(7 * 60).view(7, 60), torch.arange(7), lengths)
    assert [row for part in found for row in range(part.rows.start, part.rows.stop)] == list(range(7))
    assert all(part.slots.numel() <= 100 for part in found)
    for part in found:
        visible = (part.bias[:, 0, 0] == 0).sum(1)
        assert visible.tolist() == lengths[part.rows].tolist()


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(platform.ATTENTION_SWITCH, raising=False)
    assert platform.attention_choice() == "loop"
    monkeypatch.setenv(platform.ATTENTION_SWITCH, "batched")
    assert platform.attention_choice() == "batched"
    monkeypatch.setenv(platform.ATTENTION_SWITCH, "fast")
    with pytest.raises(ValueError, match=r"LED_SGLANG_CPU_ATTENTION is 'fast': must be one of loop, batched"):
        platform.attention_choice()
