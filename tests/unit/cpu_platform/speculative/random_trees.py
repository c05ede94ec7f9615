"""Random trees of draft tokens, as plain lists, for comparisons with loops."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Parents come before their children; siblings have different tokens."""

    parents: tuple[int, ...]  # -1 for the root
    tokens: tuple[int, ...]

    @cached_property
    def children(self) -> list[list[int]]:
        return [[node for node, parent in enumerate(self.parents) if parent == own] for own in range(len(self.parents))]

    def path(self, node: int) -> list[int]:
        """From the root to the node, both included."""
        return [node] if self.parents[node] < 0 else [*self.path(self.parents[node]), node]

    def mask(self) -> list[list[bool]]:
        nodes = range(len(self.parents))
        return [[other in self.path(node) for other in nodes] for node in nodes]

    def links(self) -> tuple[list[int], list[int]]:
        """First children and next siblings."""
        first = [children[0] if children else -1 for children in self.children]
        following = [-1] * len(self.parents)
        for children in self.children:
            for one, other in pairwise(children):
                following[one] = other
        return first, following


def draw(rng: np.random.Generator, size: int, vocabulary: int, chain: float = 0.5) -> Tree:
    """A tree of `size` nodes; a node continues the one before it with probability `chain`."""
    parents, tokens = [-1], [int(rng.integers(vocabulary))]
    while len(parents) < size:
        parent = len(parents) - 1 if rng.random() < chain else int(rng.integers(len(parents)))
        taken = {tokens[node] for node, other in enumerate(parents) if other == parent}
        free = sorted(set(range(vocabulary)) - taken)
        if free:
            parents.append(parent)
            tokens.append(int(rng.choice(free)))
    return Tree(tuple(parents), tuple(tokens))


def batch(trees: list[Tree]) -> dict[str, Tensor]:
    """The tensors (batch, n) int64 that SGLang gives to a verification."""
    links = [tree.links() for tree in trees]
    return {
        "candidates": torch.tensor([tree.tokens for tree in trees]),
        "index": torch.arange(len(trees) * len(trees[0].tokens)).view(len(trees), -1),
        "next_token": torch.tensor([first for first, _ in links]),
        "next_sibling": torch.tensor([following for _, following in links]),
    }


def full_mask(trees: list[Tree], prefixes: list[int]) -> Tensor:
    """SGLang's FULL_MASK, flat: for each tree n rows of prefix + n columns."""
    rows = [torch.cat((torch.ones(len(tree.tokens), prefix), torch.tensor(tree.mask())), 1).bool()
            for tree, prefix in zip(trees, prefixes, strict=True)]  # fmt: skip
    return torch.cat([row.flatten() for row in rows])
