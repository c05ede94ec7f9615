"""Draft trees: parents, thinking states, and which nodes cost latent work, against plain Python over random trees."""

import pytest
import torch

from led_sglang.ops import backend_for
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree, reachable
from tests.unit.ops.cases import tree_cases
from tests.unit.ops.cases.op_cases import CPU

# "triton": kernels/step_checks.py
BACKENDS = [backend_for("numba", CPU), backend_for("torch", CPU), TorchBackend(allows_dynamic_shapes=False)]
NAMES = ["numba", "torch", "torch with fixed shapes"]


@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_pruning_changes_nothing_that_can_be_accepted(backend):
    tree_cases.compare(backend)


@pytest.mark.parametrize("backend", BACKENDS[:2], ids=NAMES[:2])
def test_no_automaton_and_foreign_ids(backend):
    trees = tree_cases.draw_trees(4, 6, seed=3)
    found = backend.draft_tree(*trees.links(), None)
    assert torch.equal(found.states, trees.root_states[:, None].expand(4, 6))
    trees.token_ids[:, 1:] += 10**6
    found = backend.draft_tree(*trees.links(), tree_cases.TABLES)
    assert torch.equal(found.states & 1, (trees.root_states & 1)[:, None].expand(4, 6))


@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_one_request(backend):
    for seed in range(8):
        trees = tree_cases.draw_trees(1, 7, seed)
        found = backend.draft_tree(*trees.links(), tree_cases.TABLES)
        assert found.parents.tolist() == trees.parents and torch.equal(found.states, tree_cases.states_of(trees))


def test_reach_is_what_is_decided_so_far():
    tokens, parents = torch.tensor([[9, 5, 6, 7, 8]]), torch.tensor([[-1, 0, 0, 1, -1]])
    tree = DraftTree(Drafts(tokens, parents, parents), parents, torch.zeros_like(tokens))
    decided, closed = torch.tensor([5, 0, 0, 0, 0]), torch.zeros(5, dtype=torch.bool)
    assert reachable(tree, decided, closed).tolist() == [True, True, False, False, False]
    is_open = torch.tensor([False, True, False, False, False])
    assert reachable(tree, decided, is_open).tolist() == [True, True, False, True, False]
    assert reachable(tree, decided, ~closed).tolist() == [True, True, True, True, False]
