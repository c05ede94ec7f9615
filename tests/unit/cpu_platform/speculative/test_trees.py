"""Trees of draft tokens against plain loops: from masks, and from what SGLang's own draft steps chose."""

import numpy as np
import pytest
import torch
from sglang.srt.speculative import eagle_utils, spec_utils

from led_sglang.cpu_platform.speculative.trees import build_tree, reconstruct_tree
from tests.unit.cpu_platform.speculative import random_trees
from tests.unit.cpu_platform.speculative.random_trees import Tree

LENGTHS = [5, 0, 17]


def outputs(num_rows: int, n: int) -> tuple[torch.Tensor, ...]:
    """positions, index, next_token and next_sibling with other numbers in them."""
    return torch.full((num_rows * n,), 77), *(torch.full((num_rows, n), 77) for _ in range(3))


def assert_links(trees: list[Tree], lengths: list[int], found: tuple[torch.Tensor, ...]) -> None:
    positions, index, next_token, next_sibling = found
    n = len(trees[0].tokens)
    expected = random_trees.batch(trees)
    assert index.tolist() == expected["index"].tolist()
    assert next_token.tolist() == expected["next_token"].tolist()
    assert next_sibling.tolist() == expected["next_sibling"].tolist()
    depths = [[length + len(tree.path(node)) - 1 for node in range(n)]
              for tree, length in zip(trees, lengths, strict=True)]  # fmt: skip
    assert positions.view(-1, n).tolist() == depths


@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("seed", range(20))
def test_everything_follows_from_the_mask(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    trees = [random_trees.draw(rng, size, 30, chain=rng.random()) for _ in LENGTHS]
    mask = torch.tensor([tree.mask() for tree in trees]).flatten()
    found = outputs(len(trees), size)
    reconstruct_tree(mask, torch.tensor(LENGTHS), *found, len(trees), size)
    assert_links(trees, LENGTHS, found)


def test_a_second_root_is_nobodys_child() -> None:
    """NGRAM has none, but the mask can say it, and SGLang's kernel gives it no sibling."""
    found = outputs(1, 3)
    reconstruct_tree(torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool().flatten(), torch.tensor([4]), *found, 1, 3)
    assert [output.flatten().tolist() for output in found] == [[4, 4, 5], [0, 1, 2], [2, -1, -1], [-1, -1, -1]]


class Draft:
    """SGLang's draft steps over random probabilities: every candidate has a token of its own, so a token names it."""

    def __init__(self, seed: int, topk: int, steps: int, num_nodes: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = len(LENGTHS)
        self.parent_of: dict[int, int] = {}
        scores, hidden, lists, used = None, None, ([], [], []), 1
        parents = torch.zeros(rows, 1, dtype=torch.int64)
        later = spec_utils._select_top_k_tokens_later
        later = getattr(later, "_torchdynamo_orig_callable", later)
        for step in range(steps):
            shape = (rows, topk) if step == 0 else (rows * topk, topk)
            tokens = torch.arange(used, used + shape[0] * topk).view(shape)
            used += shape[0] * topk
            self.parent_of |= {
                token: parent for parent, row in zip(parents.flatten().tolist(), tokens.tolist(), strict=True)
                for token in row
            }  # fmt: skip
            probs = torch.rand(shape, generator=generator).sort(-1, descending=True).values
            if step == 0:
                chosen = spec_utils.select_top_k_tokens(0, probs, tokens, hidden, scores, topk)
            else:
                chosen = later(step, probs, tokens, hidden, scores, topk)
            parents, hidden, scores, info = chosen
            for found, values in zip(info, lists, strict=True):
                values.append(found)
        self.parent_list, self.selected, self.tokens = eagle_utils.organize_draft_results(*lists, num_nodes)

    def trees(self) -> list[Tree]:
        result = []
        for tokens in self.tokens.tolist():
            place = {0: 0} | {token: node for node, token in enumerate(tokens, 1)}
            parents = [place[self.parent_of[token]] for token in tokens]
            result.append(Tree((-1, *parents), (0, *tokens)))
        return result


SIZES = [(3, 3, 8), (1, 4, 5), (4, 1, 4), (2, 2, 5), (8, 5, 64), (2, 1, 3)]


@pytest.mark.parametrize(("topk", "steps", "size"), SIZES)
@pytest.mark.parametrize("mode", [0, 1])
def test_the_tree_of_a_draft(topk: int, steps: int, size: int, mode: int) -> None:
    for seed in range(10):
        draft = Draft(seed, topk, steps, size)
        trees, lengths = draft.trees(), torch.tensor(LENGTHS)
        mask = torch.ones((lengths * (mode == 0) + size).sum() * size, dtype=torch.bool)
        found = outputs(len(trees), size)
        build_tree(draft.parent_list, draft.selected, lengths, mask, *found, topk, steps, size, mode)
        assert_links(trees, LENGTHS, found)
        assert torch.equal(mask, random_trees.full_mask(trees, LENGTHS if mode == 0 else [0] * len(trees)))


def test_a_packed_mask_is_refused() -> None:
    draft = Draft(0, 2, 2, 4)
    with pytest.raises(ValueError, match="tree_mask_mode is 2, legal are 0"):
        build_tree(draft.parent_list, draft.selected, torch.tensor(LENGTHS), torch.ones(99), *outputs(3, 4), 2, 2, 4, 2)
