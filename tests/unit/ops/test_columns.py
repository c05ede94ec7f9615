"""Columns that are numpy's until somebody asks for a tensor."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from op_cases import make_rows
from torch import Tensor

from led_sglang.ops.arrays import Columns
from led_sglang.ops.rows.inputs import RowInputs


@dataclass(frozen=True)
class Pair(Columns):
    left: Tensor
    right: Tensor
    name: str = "pair"


def test_a_tensor_is_made_once_and_shares_its_memory():
    left = np.arange(3)
    pair = Pair.of_arrays({"left": left}, right=torch.ones(2))
    assert pair.arrays("left", "right")[0] is left and pair.arrays("right")[0].tolist() == [1, 1]
    assert pair.left is pair.left and pair.left.data_ptr() == left.ctypes.data
    left[0] = 7
    assert pair.left.tolist() == [7, 1, 2] and pair.name == "pair"


def test_a_name_that_is_no_field():
    for pair in (Pair.of_arrays({"left": np.arange(3)}), Pair(torch.zeros(1), torch.zeros(1))):
        with pytest.raises(AttributeError, match="Pair has no middle"):
            pair.middle  # noqa: B018
    with pytest.raises(AttributeError, match="Pair has no right"):
        Pair.of_arrays({"left": np.arange(3)}).arrays("right")


def test_replace_makes_tensors():
    changed = replace(Pair.of_arrays({"left": np.arange(3), "right": np.arange(2)}), right=torch.zeros(1))
    assert changed.left.tolist() == [0, 1, 2] and changed.right.tolist() == [0] and "_arrays" not in vars(changed)


@pytest.mark.parametrize("is_array", [True, False])
def test_rows_take_a_steps_activity_as_it_is(is_array):
    rows, active = make_rows(2), np.array([True, False])
    as_tensor = RowInputs.of_arrays({}, active=torch.from_numpy(active))
    now = RowInputs.of_arrays({"active": active}) if is_array else as_tensor
    for again in (rows, rows.activated(now)):
        active_rows = again.activated(now)
        assert active_rows.arrays("active")[0].tolist() == active_rows.active.tolist() == [True, False]
        assert active_rows.cache is rows.cache and active_rows.depth is rows.depth
    assert rows.active.tolist() != [True, False]
