"""What is accepted of a tree: the greedy walk against plain loops, sampling against the exact distribution."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from led_sglang.cpu_platform.speculative import verification
from tests.unit.cpu_platform.speculative import random_trees
from tests.unit.cpu_platform.speculative.random_trees import Tree

FALSE_ALARM = 1e-6  # of this file; its seeds are fixed
NUM_ROWS = 40_000


def outputs(num_rows: int, n: int, depth: int) -> tuple[torch.Tensor, ...]:
    sizes = ((num_rows * n,), 0), ((num_rows, depth), -1), ((num_rows,), 77)
    predicts, accept_index, num_accepted = (torch.full(size, value, dtype=torch.int32) for size, value in sizes)
    return predicts, accept_index, num_accepted


def walk(tree: Tree, target: list[int], max_depth: int) -> tuple[list[int], list[int]]:
    """Accepted nodes, and the target's token at each."""
    nodes = [0]
    while len(nodes) < max_depth:
        following = [child for child in tree.children[nodes[-1]] if tree.tokens[child] == target[nodes[-1]]]
        if not following:
            break
        nodes += following
    return nodes, [target[node] for node in nodes]


@pytest.mark.parametrize(("size", "max_depth"), [(1, 1), (2, 2), (8, 8), (12, 4), (12, 12), (40, 3)])
@pytest.mark.parametrize("seed", range(10))
def test_greedy_walk(seed: int, size: int, max_depth: int) -> None:
    rng = np.random.default_rng(seed)
    trees = [random_trees.draw(rng, size, 50, chain=rng.random()) for _ in range(6)]
    target = rng.integers(0, 50, (len(trees), size))
    for row, tree in enumerate(trees):  # often a child's token, or nothing would be accepted
        for node, children in enumerate(tree.children):
            if children and rng.random() < 0.8:
                target[row, node] = tree.tokens[rng.choice(children)]
    tensors, found = random_trees.batch(trees), outputs(len(trees), size, max_depth)
    links = (tensors["index"], tensors["next_token"], tensors["next_sibling"])
    predicts, accept_index, num_accepted = verification.verify_tree_greedy(
        *found, tensors["candidates"], *links, torch.from_numpy(target)
    )
    for row, tree in enumerate(trees):
        nodes, tokens = walk(tree, target[row].tolist(), max_depth)
        assert num_accepted[row] == len(nodes) - 1
        accepted = [row * size + node for node in nodes]
        assert accept_index[row].tolist() == accepted + [-1] * (max_depth - len(nodes))
        assert predicts[accepted].tolist() == tokens


def sample(tree: Tree, probs: np.ndarray[Any, Any], max_depth: int, seed: int = 0, **thresholds: float) -> Counter[Any]:
    """How often each run of tokens came out of NUM_ROWS verifications of one tree; probs: (n, V)."""
    n, generator = len(tree.tokens), torch.Generator().manual_seed(seed)
    tensors, found = random_trees.batch([tree] * NUM_ROWS), outputs(NUM_ROWS, n, max_depth)
    target = torch.from_numpy(probs).float().expand(NUM_ROWS, -1, -1)
    verification.tree_speculative_sampling_target_only(
        *found,
        tensors["candidates"],
        tensors["index"],
        tensors["next_token"],
        tensors["next_sibling"],
        torch.rand(NUM_ROWS, n, generator=generator),
        torch.rand(NUM_ROWS, generator=generator),
        target,
        torch.zeros(NUM_ROWS, n, probs.shape[1]),
        **thresholds,
    )
    predicts, accept_index, num_accepted = (output.tolist() for output in found)
    nodes = [row[: count + 1] for row, count in zip(accept_index, num_accepted, strict=True)]
    for row, path in enumerate(nodes):
        assert path == [row * n + node for node in tree.path(path[-1] - row * n)], "accepted nodes are a path"
    return Counter(tuple(predicts[node] for node in path) for path in nodes)


def exact(tree: Tree, probs: np.ndarray[Any, Any], max_depth: int) -> dict[tuple[int, ...], float]:
    """The probability of each run of tokens: a run goes on as long as its tokens are nodes of the tree."""
    runs: dict[tuple[int, ...], float] = {}

    def go(node: int, tokens: tuple[int, ...], mass: float) -> None:
        child_of = {tree.tokens[child]: child for child in tree.children[node]}
        for token, own in enumerate(probs[node]):
            run = (*tokens, token)
            if token in child_of and len(run) < max_depth:
                go(child_of[token], run, mass * own)
            else:
                runs[run] = mass * own

    go(0, (), 1.0)
    return runs


def p_value(counts: Counter[Any], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square over the runs; those that are expected less than 10 times are one bin."""
    if any(expected.get(run, 0.0) == 0.0 for run in counts):
        return 0.0
    often = [run for run, mass in expected.items() if mass * NUM_ROWS >= 10]
    rest = max(0.0, 1.0 - sum(expected[run] for run in often))
    seen = [*(counts[run] for run in often), NUM_ROWS - sum(counts[run] for run in often)]
    due = [*(expected[run] * NUM_ROWS for run in often), rest * NUM_ROWS]
    if due[-1] < 10:
        seen, due = seen[:-1], due[:-1]
    return float(stats.chisquare(seen, np.array(due) * sum(seen) / sum(due)).pvalue)


CASES = [(1, 1), (2, 2), (4, 4), (6, 3), (9, 9), (9, 2)]


def case(seed: int, size: int) -> tuple[Tree, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(6, 0.7), size)
    probs[:, rng.integers(6)] *= rng.random() < 0.5  # a token that the target never draws
    return random_trees.draw(rng, size, 6), probs / probs.sum(-1, keepdims=True)


@pytest.mark.parametrize(("size", "max_depth"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_sampled_runs_have_the_targets_distribution(seed: int, size: int, max_depth: int) -> None:
    tree, probs = case(seed, size)
    level = FALSE_ALARM / (len(CASES) * 3)
    assert p_value(sample(tree, probs, max_depth, seed), exact(tree, probs, max_depth)) > level


def test_another_distribution_would_be_seen() -> None:
    tree, probs = case(1, 6)
    wrong = probs**1.1
    counts, expected = sample(tree, probs, 6), exact(tree, wrong / wrong.sum(-1, keepdims=True), 6)
    assert p_value(counts, expected) < FALSE_ALARM
    assert p_value(sample(tree, probs, 6, threshold_single=0.3), exact(tree, probs, 6)) < FALSE_ALARM
    assert p_value(sample(tree, probs, 6, threshold_acc=0.7), exact(tree, probs, 6)) < FALSE_ALARM


def test_rounding_never_draws_what_the_target_cannot() -> None:
    """All mass was drafted and rounding rejected it: what is drawn still has mass."""
    tree = Tree((-1, 0, 0), (0, 2, 1))
    probs = torch.tensor([[[0.0, 0.5, 0.49999, 0.0]] * 3])
    tensors, found = random_trees.batch([tree]), outputs(1, 3, 3)
    links = (tensors["index"], tensors["next_token"], tensors["next_sibling"])
    last = torch.tensor([1 - 2**-24])
    verification.tree_speculative_sampling_target_only(
        *found, tensors["candidates"], *links, last.expand(1, 3), last, probs, torch.zeros_like(probs)
    )
    assert [output.tolist() for output in found] == [[1, 0, 0], [[0, -1, -1]], [0]]


def kept(probs: list[float], top_k: int, top_p: float) -> list[float]:
    ranked = sorted(range(len(probs)), key=lambda token: -probs[token])[:top_k]
    chosen, mass = set(), 0.0
    for token in ranked:
        if mass <= top_p:
            chosen.add(token)
        mass += probs[token]
    total = sum(probs[token] for token in chosen)
    return [probs[token] / total if token in chosen else 0.0 for token in range(len(probs))]


def test_renormalisation_keeps_the_largest() -> None:
    rng = np.random.default_rng(0)
    probs = torch.from_numpy(rng.dirichlet(np.full(40, 0.5), 6)).float()
    top_ks, top_ps = torch.tensor([1, 2, 40, 1 << 30, 7, 39]), torch.tensor([0.0, 0.3, 0.9, 0.999, 0.5, 1.0])
    rows = probs.double().tolist()
    expected_k = [kept(row, k, 2.0) for row, k in zip(rows, top_ks.tolist(), strict=True)]
    expected_p = [kept(row, 40, p) for row, p in zip(rows, top_ps.tolist(), strict=True)]
    torch.testing.assert_close(verification.top_k_renorm_prob(probs, top_ks), torch.tensor(expected_k))
    torch.testing.assert_close(verification.top_p_renorm_prob(probs, top_ps), torch.tensor(expected_p))


def test_of_equal_probabilities_the_first_is_kept() -> None:
    """As arg-max has it: a greedy row of a batch that samples has top_k 1."""
    probs = torch.tensor([[0.2, 0.4, 0.4] + [0.0] * 30])
    assert verification.top_k_renorm_prob(probs, torch.tensor([1])).argmax() == 1
