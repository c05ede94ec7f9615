"""Which ranks have the LM head in parts between them, under data-parallel attention and without."""

from types import SimpleNamespace
from typing import Any

import pytest

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler import ranks
from led_sglang.integration.scheduler.latents.lm_head import head_group

TP, ATTENTION = SimpleNamespace(world_size=4, ranks=[0, 1, 2, 3]), SimpleNamespace(world_size=2, ranks=[2, 3])
ALONE = SimpleNamespace(world_size=1, ranks=[3])


def parallel(monkeypatch: pytest.MonkeyPatch, attn_dp_size: int, attn_tp_group: Any) -> None:
    found = SimpleNamespace(attn_dp_size=attn_dp_size, attn_tp_group=attn_tp_group, tp_group=TP)
    monkeypatch.setattr(ranks, "get_parallel", lambda: found)


def head(num_parts: int) -> Any:
    return SimpleNamespace(tp_size=num_parts)


def test_tensor_parallel_ranks_share_rows_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch, 1, TP)
    assert ranks.row_group() is TP and head_group(head(4)) is TP and head_group(None) is TP


@pytest.mark.parametrize(("size", "group", "parts"), [(2, ATTENTION, 2), (4, ALONE, 1)])
def test_ranks_of_one_data_parallel_rank(size: int, group: Any, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch, size, group)
    assert ranks.row_group() is group and head_group(head(parts)) is group


def test_every_rank_may_have_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch, 2, ATTENTION)
    assert head_group(head(1)) is None


def test_a_head_in_parts_on_other_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch, 2, ATTENTION)
    with pytest.raises(CaptureError, match="cut over 4 ranks and a batch's rows live on 2 of them"):
        head_group(head(4))
