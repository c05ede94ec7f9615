"""Paged decode attention agrees with SGLang's loop over sequences, whatever their lengths and however many threads."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from led_sglang.cpu_platform import attention
from led_sglang.cpu_platform.paged_attention import attend

SLOTS, HEADS, KV_HEADS, SIZE = 512, 4, 2, 16


class Pool:
    """Keys and values of one layer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values = (torch.randn(SLOTS, KV_HEADS, SIZE, generator=generator).to(dtype) for _ in range(2))

    def get_key_buffer(self, _: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, _: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, _: Any, where: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
        slots = getattr(where, "loc", None)
        slots = where[0] if slots is None else slots
        self.keys[slots], self.values[slots] = keys.view(-1, KV_HEADS, SIZE), values.view(-1, KV_HEADS, SIZE)


def decode_step(
    kind: type[Any],
    lengths: list[int],
    window: int = -1,
    dtype: torch.dtype = torch.float32,
    computed: torch.dtype | None = None,
) -> torch.Tensor:
    """One decode step of `kind`: writes a key and value for each sequence, then attends.

    computed: the type of the arithmetic, with values that `dtype` holds.
    """
    generator = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randperm(SLOTS, generator=generator) for _ in range(len(lengths) + 2)])
    requests = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
    seq_lens = torch.tensor(lengths)
    pool = Pool(dtype)
    pool.keys, pool.values = pool.keys.to(computed or dtype), pool.values.to(computed or dtype)
    runner = SimpleNamespace(device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=table), token_to_kv_pool=pool)
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
    sizes = (HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE)
    q, k, v = (torch.randn(len(lengths), n, generator=generator).to(dtype).to(computed or dtype) for n in sizes)
    backend = kind(runner)
    backend.init_forward_metadata(batch)
    return backend.forward_decode(q, k, v, layer, batch)


@pytest.mark.parametrize("lengths", [[1], [7], [5, 1, 40, 17], [300, 1, 2], [64] * 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_agrees_with_the_loop(monkeypatch: pytest.MonkeyPatch, lengths: list[int], threads: int) -> None:
    monkeypatch.setattr(attention, "MIN_KEYS_A_THREAD", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    expected = decode_step(TorchNativeAttnBackend, lengths)
    torch.testing.assert_close(decode_step(attention.PagedAttention, lengths), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 40, 17], [300, 1, 2]])
def test_bfloat16_is_float32_rounded_at_its_end(lengths: list[int]) -> None:
    """The loop's scaled_dot_product_attention rounds weights on the way: it is no closer to the exact product."""
    exact = decode_step(TorchNativeAttnBackend, lengths, dtype=torch.bfloat16, computed=torch.float64)
    loop = decode_step(TorchNativeAttnBackend, lengths, dtype=torch.bfloat16)
    found = decode_step(attention.PagedAttention, lengths, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= (loop.double() - exact).abs().max() + 1e-3
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("more", [{"window": 3}, {"dtype": torch.float16}])
def test_what_it_cannot_do_goes_the_loops_way(more: dict[str, Any]) -> None:
    lengths = [5, 1, 40]
    expected = decode_step(TorchNativeAttnBackend, lengths, **more)
    assert torch.equal(decode_step(attention.PagedAttention, lengths, **more), expected)


def attended(rows: list[int]) -> torch.Tensor:
    """Some of seven sequences, the same whichever are asked for."""
    generator = torch.Generator().manual_seed(2)
    lengths, table = torch.tensor([3, 50, 7, 1, 2, 400, 9]), torch.randint(SLOTS, (7, 400), generator=generator)
    query, pool = torch.randn(7, HEADS, SIZE, generator=generator), Pool()
    step = attention.DecodeStep.of(table.int(), torch.tensor(rows), lengths[rows], num_threads=1)
    output = torch.empty(len(rows), HEADS, SIZE)
    arrays = (query[rows].numpy(), pool.keys.numpy(), pool.values.numpy(), step.table, step.requests, step.lengths)
    attend(*arrays, np.float32(0.3), output.numpy(), step.parts[0])
    return output


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together = attended(list(range(7)))
    assert torch.equal(torch.cat([attended([row]) for row in range(7)]), together)
    assert torch.equal(attended([5, 3]), together[[5, 3]])


@pytest.mark.parametrize("lengths", [[1], [5000], [1, 5000, 1], [3000] * 4, [1] * 300, [0, 0]])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_row_belongs_to_one_thread(lengths: list[int], threads: int) -> None:
    rows = torch.arange(len(lengths))
    parts = attention.DecodeStep.of(torch.zeros(300, 1), rows, torch.tensor(lengths), threads).parts
    assert [row for start, stop in parts for row in range(start, stop)] == rows.tolist()
    assert 1 <= len(parts) <= threads
    if lengths == [3000] * 4 and threads == 2:
        assert parts == ((0, 2), (2, 4))


ATTEND = """
import hashlib
import numpy as np
from led_sglang.cpu_platform.paged_attention import attend

draw, digest = np.random.default_rng(0), hashlib.sha256()
for heads, kv_heads, size in ((4, 2, 16), (4, 4, 32), (6, 1, 24)):
    query, output = draw.standard_normal((3, heads, size), np.float32), np.empty((3, heads, size), np.float32)
    keys, values = draw.standard_normal((2, 500, kv_heads, size), np.float32)
    table, lengths = draw.integers(0, 500, (3, 400), np.int32), np.array([1, 33, 400])
    attend(query, keys, values, table, np.arange(3), lengths, np.float32(0.3), output, (0, 3))
    digest.update(output.tobytes())
print(digest.hexdigest())
"""


def test_bits_do_not_depend_on_what_was_compiled_before(tmp_path: Path) -> None:
    """Compiled now, read from numba's cache, compiled around parts from that cache: three servers that must agree."""

    def run() -> str:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", ATTEND]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    digests = [run(), run()]
    kept = list(tmp_path.rglob("*.attend-*"))
    assert kept, "nothing was cached: this compares nothing"
    for path in kept:
        path.unlink()
    assert {*digests, run()} == {digests[0]}
