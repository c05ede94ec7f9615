"""What a verdict makes of the engine's outcome, against plain loops over random trees and random verdicts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.integration.scheduler.speculation.outcome import Outcome, Verdict
from tests.unit.ops.cases.tree_cases import VOCAB, Trees, draw_trees

B, N = 8, 9


def stock_of(trees: Trees, max_depth: int, rng: torch.Generator) -> tuple[Outcome, list[list[int]]]:
    """A path to any node of each tree, cut where it is too long; tokens that mean nothing."""
    paths = []
    for row in trees.parents:
        path = [int(torch.randint(0, N, (1,), generator=rng))]
        while row[path[0]] >= 0:
            path.insert(0, row[path[0]])
        paths.append(path[:max_depth] if path[0] == 0 else [0])
    accept_index = torch.full((B, max_depth), -1, dtype=torch.int32)
    for b, path in enumerate(paths):
        accept_index[b, : len(path)] = torch.tensor(path) + b * N
    predict = torch.randint(1000, 2000, (B * N,), generator=rng).int()
    return Outcome(predict, torch.tensor([len(path) for path in paths]).int(), accept_index), paths


def verdict_of(trees: Trees, rng: torch.Generator) -> Tensor:
    """Some nodes are not decided; most of the others have the token of one of their children."""
    token_ids = torch.randint(0, VOCAB, (B, N), generator=rng)
    for b, row in enumerate(trees.parents):
        for node in range(N):
            children = [child for child, parent in enumerate(row) if parent == node]
            if children and torch.rand(1, generator=rng) < 0.8:
                token_ids[b, node] = trees.token_ids[b, children[int(torch.randint(0, len(children), (1,)))]]
    return token_ids.masked_fill(torch.rand(B, N, generator=rng) < 0.25, -1)


def expected_path(trees: Trees, b: int, verdict: list[int], stock: list[int], max_depth: int) -> list[int]:
    if verdict[0] < 0:
        decided = [step for step, node in enumerate(stock) if verdict[node] >= 0]
        return stock[: decided[0]] if decided else stock
    path = [0]
    while len(path) < max_depth:
        nodes = [child for child, parent in enumerate(trees.parents[b]) if parent == path[-1] and verdict[child] >= 0]
        nodes = [child for child in nodes if trees.token_ids[b, child] == verdict[path[-1]]]
        if not nodes:
            break
        path.append(nodes[0])
    return path


def inputs_of(trees: Trees, is_ours: Tensor) -> Any:
    drafts, _ = trees.links()
    nodes = SimpleNamespace(is_ours=is_ours, number=torch.arange(drafts.token_ids.numel()))
    return SimpleNamespace(nodes=nodes, tree=SimpleNamespace(drafts=drafts))


@pytest.mark.parametrize("max_depth", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(12))
def test_a_verdict_over_the_engines_outcome(seed: int, max_depth: int) -> None:
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(100 * seed + max_depth)
    trees = draw_trees(B, N, seed)
    stock, stock_paths = stock_of(trees, max_depth, rng)
    token_ids, is_ours = verdict_of(trees, rng), torch.rand(B, generator=rng) < 0.8
    token_ids[~is_ours] = torch.where(torch.rand(1) < 0.5, -1, token_ids[~is_ours])  # of others it is never read
    kept = [tensor.clone() for tensor in stock]
    found = Verdict(token_ids).apply(inputs_of(trees, is_ours), stock)
    assert all(torch.equal(one, other) for one, other in zip(stock, kept, strict=True)), "not written here"
    for tensor, other in zip(found, stock, strict=True):
        assert (tensor.dtype, tensor.shape) == (torch.int32, other.shape)
    for b in range(B):
        verdict = token_ids[b].tolist()
        if not is_ours[b]:
            assert torch.equal(found.accept_index[b], stock.accept_index[b])
            assert found.accept_lens[b] == stock.accept_lens[b]
            assert torch.equal(found.predict[b * N : (b + 1) * N], stock.predict[b * N : (b + 1) * N])
            continue
        path = expected_path(trees, b, verdict, stock_paths[b], max_depth)
        rows = [b * N + node for node in path]
        assert found.accept_index[b].tolist() == rows + [-1] * (max_depth - len(rows))
        assert found.accept_lens[b] == len(path)
        tokens = [int(stock.predict[row]) for row in rows] if verdict[0] < 0 else [verdict[node] for node in path]
        assert found.predict[rows].tolist() == tokens


def test_an_outcome_is_written_into_the_engines_tensors() -> None:
    stock = Outcome(torch.zeros(4).int(), torch.ones(2).int(), torch.zeros(2, 2).int())
    tensors = tuple(stock)
    other = stock._replace(predict=torch.arange(4).int(), accept_index=torch.tensor([[0, 1], [2, -1]]).int())
    other.write(stock)
    assert all(one is two for one, two in zip(stock, tensors, strict=True))
    assert [tensor.tolist() for tensor in stock] == [[0, 1, 2, 3], [1, 1], [[0, 1], [2, -1]]]


def test_the_path_of_an_outcome() -> None:
    index = torch.tensor([[0, 2, 3], [4, -1, -1]]).int()
    outcome = Outcome(torch.zeros(8).int(), torch.tensor([3, 1]).int(), index)
    assert outcome.is_path.tolist() == [[True, True, True], [True, False, False]]
    assert outcome.path.dtype == torch.int64 and outcome.path[outcome.is_path].tolist() == [0, 2, 3, 4]
    assert (outcome.path >= 0).all(), "may be gathered behind the path"
