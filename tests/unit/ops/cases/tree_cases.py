"""Random draft trees, and what their nodes are, in plain Python."""

from dataclasses import dataclass

import torch
from torch import Tensor

from led_sglang.ops import Backend, LedRows, LedStep, RowMeta, ThinkingAutomaton, backend_for, led_step
from led_sglang.ops.rows.draft_tree import Drafts
from led_sglang.ops.types import RowInputs
from tests.unit.ops.cases.op_cases import CPU, Case, make_case

OPEN, CLOSE, VOCAB = [1, 2], [3], 40
AUTOMATON = ThinkingAutomaton(OPEN, CLOSE, VOCAB)
TABLES = AUTOMATON.tables("cpu")
MARKERS = torch.tensor([1, 2, 3])


@dataclass
class Trees:
    """Links as the engine's tree builders write them: siblings ascend, parents come before their children."""

    token_ids: Tensor  # (B, N)
    first_child: Tensor
    next_sibling: Tensor
    parents: list[list[int]]
    root_states: Tensor  # (B,)

    def links(self) -> tuple[Drafts, Tensor]:
        return Drafts(self.token_ids, self.first_child, self.next_sibling), self.root_states


def trees_of(parents: list[list[int]], token_ids: Tensor, root_states: Tensor) -> Trees:
    first_child, next_sibling = torch.full((2, *token_ids.shape), -1)
    for b, row in enumerate(parents):
        for node in range(len(row) - 1, 0, -1):
            if row[node] >= 0:
                next_sibling[b, node] = first_child[b, row[node]]
                first_child[b, row[node]] = node
    return Trees(token_ids, first_child, next_sibling, parents, root_states)


def draw_trees(num_requests: int, num_nodes: int, seed: int) -> Trees:
    """Siblings differ; a few nodes hang nowhere; half of the tokens belong to markers."""
    generator = torch.Generator().manual_seed(seed)

    def number(top: int) -> int:
        return int(torch.randint(0, top, (1,), generator=generator))

    parents: list[list[int]] = []
    token_ids = torch.zeros(num_requests, num_nodes, dtype=torch.int64)
    for b in range(num_requests):
        row = [-1]
        for node in range(1, num_nodes):
            row.append(-1 if number(9) == 0 else number(node))
            taken = {int(token_ids[b, other]) for other in range(1, node) if row[other] == row[node]}
            free = [token for token in range(VOCAB) if token not in taken]
            some = [token for token in free if token in MARKERS] if number(2) else free
            token_ids[b, node] = (some or free)[number(len(some or free))]
        parents.append(row)
    states = torch.tensor([AUTOMATON.run([1, 2]) if number(2) else 0 for _ in range(num_requests)])
    return trees_of(parents, token_ids, states)


def states_of(trees: Trees) -> Tensor:
    """(B, N): the automaton run over the path from the root."""
    found = trees.root_states[:, None].repeat(1, trees.token_ids.shape[1])
    for b, row in enumerate(trees.parents):
        for node, parent in enumerate(row):
            if parent >= 0:
                found[b, node] = AUTOMATON.run([int(trees.token_ids[b, node])], int(found[b, parent]))
    return found


def accepted_paths(trees: Trees, token_ids: Tensor) -> list[list[int]]:
    """Token rows along which the drafts equal the decided tokens, of each request."""
    num_nodes = trees.token_ids.shape[1]
    paths = []
    for b, row in enumerate(trees.parents):
        path = [0]
        while True:
            wanted = int(token_ids[b * num_nodes + path[-1]])
            children = [n for n, parent in enumerate(row) if parent == path[-1] and trees.token_ids[b, n] == wanted]
            if not children:
                break
            path.append(children[0])
        paths.append([b * num_nodes + node for node in path])
    return paths


@dataclass
class NodeStep:
    """A step over the nodes of trees whose drafts follow the step's own tokens as often as not."""

    case: Case
    rows: LedRows
    inputs: RowInputs
    trees: Trees

    def run(self, backend: Backend, is_pruned: bool = True) -> LedStep:
        case = self.case
        tree = backend.draft_tree(*self.trees.links(), TABLES) if is_pruned else None
        return led_step(case.final_logits, case.latents, case.head, self.rows, self.inputs, backend=backend, tree=tree)


def node_step(seed: int, num_nodes: int = 7) -> NodeStep:
    backend, num_requests = backend_for("numba", CPU), 5
    trees = draw_trees(num_requests, num_nodes, seed)
    num_rows = num_requests * num_nodes
    case = make_case(num_rows, VOCAB, hidden=32, depth=4, seed=seed)
    number = torch.arange(num_requests)
    of_request = torch.repeat_interleave(number, num_nodes)
    meta = RowMeta(None, 11 + number, number % 2, 0 * number, 0 * number - 1, number == 2, None, True)
    rows = LedRows.uniform(
        num_requests,
        4,
        torch.tensor([8, 5, 3, 8, 8]),
        temperature=torch.tensor([1.5, 0.7, 1, 1, 0.3]),
        greedy=number == 1,
        exploit=number != 3,
        trace=number == 0,
    ).take(of_request)
    for _ in range(num_nodes):  # drafts further down depend on the thinking states of those above
        states = states_of(trees).flatten()
        inputs = backend.row_inputs(
            meta.take(of_request), torch.arange(num_rows), 50 + torch.arange(num_rows), None, states
        )
        step = led_step(case.final_logits, case.latents, case.head, rows, inputs, backend=backend)
        follow = torch.rand(num_rows, generator=torch.Generator().manual_seed(seed)) < 0.6
        token_ids = trees.token_ids.clone()
        for b, row in enumerate(trees.parents):
            for node, parent in enumerate(row):
                elder = [n for n in range(node) if row[n] == parent]
                wanted = int(step.token_ids[b * num_nodes + parent])
                if parent >= 0 and follow[b * num_nodes + node] and wanted not in token_ids[b, elder]:
                    token_ids[b, node] = wanted
        trees = trees_of(trees.parents, token_ids, trees.root_states)
    return NodeStep(case, rows, inputs, trees)


def compare(backend: Backend, num_seeds: int = 12, num_nodes: int = 7) -> None:
    """What may be accepted is decided as without pruning, and some of the rest is left out."""
    num_pruned = num_explored_on_paths = 0
    for seed in range(num_seeds):
        made = node_step(seed, num_nodes)
        states = states_of(made.trees)
        tree = backend.draft_tree(*made.trees.links(), TABLES)
        assert torch.equal(tree.states, states) and tree.parents.tolist() == made.trees.parents
        whole = made.run(backend, is_pruned=False)
        pruned = made.run(backend)
        paths = accepted_paths(made.trees, whole.token_ids)
        assert accepted_paths(made.trees, pruned.token_ids) == paths
        assert whole.ok.all()
        on_path = torch.tensor([row for path in paths for row in path])
        is_known = (made.rows.trace | whole.explored) & made.inputs.active  # of a log-probability
        for name in ("token_ids", "explored", "depth", "confidence", "explore_probs", "entropy", "logprob", "ok"):
            some = on_path[is_known[on_path]] if name == "logprob" else on_path
            mine, theirs = getattr(pruned, name)[some], getattr(whole, name)[some]
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True, msg=f"{name}, seed {seed}")
        num_explored_on_paths += int(whole.explored[on_path].sum())
        num_pruned += int((~pruned.ok).sum())
    assert num_pruned > num_seeds and num_explored_on_paths > num_seeds // 2, (num_pruned, num_explored_on_paths)
