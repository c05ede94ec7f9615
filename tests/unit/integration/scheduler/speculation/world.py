"""A small engine that speculates, and beside it what each token should be: LED for one text, one row at a time."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHODS
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.hooks.register import HANDLERS
from led_sglang.integration.hooks.table import EAGLE_SAMPLE
from led_sglang.integration.scheduler.batch import RequestRow
from led_sglang.integration.scheduler.reports import records
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops import Backend, Head, LedRows, LogitEdits, ThinkingAutomaton, backend_for, led_step, uniforms
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.rows import stats
from led_sglang.ops.types import Counters, Filters, LedStep, RowInputs
from led_sglang.wire import WIRE_KEY
from tests.unit.integration.fakes import batch_of, sampling_info

OPEN, CLOSE, V, HIDDEN, DEPTH = [1, 2], [3, 4], 24, 16, 4
AUTOMATON = ThinkingAutomaton(OPEN, CLOSE, V)
TABLES = AUTOMATON.tables("cpu")
NUM_SLOTS = 40
CPU = torch.device("cpu")
BACKENDS: dict[str, Backend] = {
    "numba": backend_for("numba", CPU),
    "torch": backend_for("torch", CPU),
    "fixed shapes": TorchBackend(allows_dynamic_shapes=False),
}
COLLECT = (
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
    "._maybe_collect_customized_info"
)


class Model:
    """Final logits and layers of a text: those of one of some rows. Both markers are likely, and come to their end."""

    GROUP = 32  # rows for texts that end in the first half of either marker, and two groups for all others

    def __init__(self, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        num_rows = 4 * self.GROUP
        weight = torch.randn(V, HIDDEN, generator=rng).div_(HIDDEN**0.5)
        favourites = torch.rand(num_rows, V, generator=rng).topk(6).indices
        favourites[: self.GROUP, 0], favourites[self.GROUP : 2 * self.GROUP, 0] = 2, 4
        favourites[2 * self.GROUP :: 3, 0], favourites[2 * self.GROUP + 1 :: 3, 0] = 1, 3
        strength = torch.randn(DEPTH, *favourites.shape, generator=rng).mul_(2).add_(9)
        strength[:, : 2 * self.GROUP, 0] += 2
        streams = torch.einsum("lrf,rfh->lrh", strength, weight[favourites])
        self.final_logits, self.latents = streams[0] @ weight.T, streams[1:]
        self.head = Head(weight, V, final_norm=lambda hidden: hidden * 2)
        self.engine_tokens = self.final_logits.topk(2).indices[:, 1].tolist()

    def row_of(self, text: list[int]) -> int:
        last, before = text[-1], text[-2]
        number = 5 * last + 3 * before + len(text)
        if last in (OPEN[0], CLOSE[0]):
            return self.GROUP * (last == CLOSE[0]) + number % self.GROUP
        return 2 * self.GROUP + number % (2 * self.GROUP)


@dataclass
class Request:
    """Of the scheduler's own as much as is read, and what its tokens should be."""

    method: str | None = "led"
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    is_seeded: bool = True
    temperature: float = 1.0  # 0: greedy
    top_k: int = 1 << 30
    top_p: float = 1.0
    min_p: float = 0.0
    edits: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)  # (V,) each, as of LogitEdits
    prompt: list[int] = field(default_factory=lambda: [9, 1, 2])
    output_ids: list[int] = field(default_factory=list)
    customized_info: dict[str, Any] | None = None
    finished_len: int | None = None

    @property
    def text(self) -> list[int]:
        return self.prompt + self.output_ids

    @property
    def is_ours(self) -> bool:
        return self.method not in (None, "none")

    @property
    def entries(self) -> list[Any]:
        return (self.customized_info or {}).get(WIRE_KEY, [])

    @cached_property
    def row(self) -> RequestRow:
        if self.method is None:
            return RequestRow(None)
        params = LedParams(self.method, **{"depth": DEPTH} | self.params)
        is_edited = any(table is not None for table in self.edits)
        return RequestRow(ResolvedRequest(params, self.seed, self.is_seeded, 3), is_edited=is_edited)

    @cached_property
    def key(self) -> str:
        """All that it asks for."""
        edits = [None if table is None else table.tolist() for table in self.edits]
        rest = self.method, self.params, self.seed, self.is_seeded, self.temperature, self.top_k, self.top_p, self.min_p
        return repr((*rest, edits))

    def led_rows(self) -> LedRows:
        assert self.row.request is not None
        params = self.row.request.params
        names = "exploit", "latent_norm", "normalize_layers", "latent_offset", "min_p", "trace"
        is_greedy = self.temperature == 0
        return LedRows.uniform(
            1,
            params.depth,
            params.top_k,
            temperature=1.0 if is_greedy else self.temperature,
            greedy=is_greedy,
            **{name: getattr(params, name) for name in names},
        )


@dataclass(frozen=True)
class Expected:
    """What one token of a text should be."""

    token: int
    is_led: bool  # LED decides it: inside the phase and finite, or outside with a seed
    flags: int
    step: LedStep | None = None


class Oracle:
    """LED without speculation: nothing of it knows of drafts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[Any, Expected] = {}

    def __call__(self, request: Request, text: list[int]) -> Expected:
        key = request.key, tuple(text)
        if key not in self.known:
            self.known[key] = self._find(request, text)
        return self.known[key]

    def text(self, request: Request, num_tokens: int) -> list[int]:
        text = list(request.prompt)
        while len(text) < len(request.prompt) + num_tokens:
            text.append(self(request, text).token)
        return text[len(request.prompt) :]

    def _find(self, request: Request, text: list[int]) -> Expected:
        model, state = self.model, AUTOMATON.run(text)
        row, thinking = model.row_of(text), AUTOMATON.thinking(state)
        engine = model.engine_tokens[row]
        if not request.is_ours:
            return Expected(engine, False, 0)
        column = torch.tensor([request.seed]), torch.tensor([3]), torch.tensor([len(text) - 1])
        coin, token_uniform = uniforms(*column)
        active = torch.tensor([request.method == "led" and (thinking or request.params.get("phase") == "all")])
        one = torch.zeros(1, dtype=torch.int64)
        inputs = RowInputs(active, coin, token_uniform, one, one + state, torch.tensor([thinking]), column[2])
        logits, edits = model.final_logits[row : row + 1].clone(), None
        if request.row.is_edited:
            edits = LogitEdits(*(None if table is None else table[None] for table in request.edits))
            edits.apply(logits)
        step = None
        if active:
            latents = model.latents[:, row : row + 1]
            step = led_step(logits, latents, model.head, request.led_rows(), inputs, backend="reference", edits=edits)
        counters = Counters.zeros(DEPTH, len(METHODS), CPU)
        flags = int(stats.pack_flags(inputs, step, False, one, counters))
        if step is not None:
            is_ok = bool(step.ok)
            return Expected(int(step.token_ids) if is_ok else engine, is_ok, flags, step)
        if not request.is_seeded:
            return Expected(engine, False, flags)
        probs = torch.softmax(logits / (request.temperature or 1.0), -1)
        top_k = 1 if request.temperature == 0 else request.top_k
        filters = Filters(torch.tensor([top_k]), torch.tensor([request.top_p]), torch.tensor([request.min_p]))
        drawn, _ = BACKENDS["torch"].sample_filtered(probs, one, one.bool(), token_uniform, filters)
        return Expected(int(drawn), True, flags)


MODEL = Model()
ORACLE = Oracle(MODEL)  # each token is worked out once


class FakeRuntime(SimpleNamespace):
    """As much of a Runtime as a verification reads."""

    advance = Runtime.advance


def fake_runtime(model: Model, backend: Backend, num_slots: int = NUM_SLOTS) -> Any:
    return FakeRuntime(
        backend=backend,
        allows_dynamic_shapes=backend.allows_dynamic_shapes,
        states=torch.zeros(num_slots + 1, dtype=torch.int64),
        tables=TABLES,
        head=model.head,
        num_led_layers=DEPTH - 1,
        is_sanitized=False,
        capture=SimpleNamespace(),
        one_pass_state=SimpleNamespace(num_steps={"coin_first": 0, "one_pass": 0}),
        num_engine_head_steps=0,
        ranks=None,
        counts=Counts(DEPTH, CPU),
        has_forward_failed=False,
        failed_ranks=None,
        num_step_failures=0,
    )


def info_of(requests: list[Request]) -> Any:
    led = batch_of(*(request.row for request in requests))
    greedy = [request.temperature == 0 for request in requests]
    info = sampling_info(led, [request.temperature or 1.0 for request in requests], greedy)
    top_ks = [1 if request.temperature == 0 else request.top_k for request in requests]
    tables: list[Tensor | None] = []
    for number, neutral in enumerate((0.0, 1.0, 0.0)):
        rows = [request.edits[number] for request in requests]
        has_any = any(row is not None for row in rows)
        fill = torch.full((V,), neutral)
        tables.append(torch.stack([fill if row is None else row for row in rows]) if has_any else None)
    vars(info).update(
        top_ks=torch.tensor(top_ks),
        top_ps=torch.tensor([request.top_p for request in requests]),
        min_ps=torch.tensor([request.min_p for request in requests]),
        need_top_k_sampling=any(top_k < 1 << 30 for top_k in top_ks),
        need_top_p_sampling=any(request.top_p < 1 for request in requests),
        need_min_p_sampling=any(request.min_p > 0 for request in requests),
        acc_additive_penalties=tables[0],
        acc_scaling_penalties=tables[1],
        logit_bias=tables[2],
    )
    return info


@dataclass
class Tree:
    """One request's drafts: node 0 is its last token."""

    parents: list[int]
    tokens: list[int]

    def children(self, node: int) -> list[int]:
        return [child for child, parent in enumerate(self.parents) if parent == node and child]

    def links(self) -> tuple[list[int], list[int]]:
        first, following = [-1] * len(self.parents), [-1] * len(self.parents)
        for node in range(len(self.parents)):
            children = self.children(node)
            if children:
                first[node] = children[0]
            for one, other in itertools.pairwise(children):
                following[one] = other
        return first, following

    def path(self, node: int) -> list[int]:
        return [node] if self.parents[node] < 0 else [*self.path(self.parents[node]), node]


# Draws a draft: the server, the request, the text so far, drafts of that place by now, and a generator.
Drafter = Callable[["Server", Request, list[int], list[int], np.random.Generator], int]


def right(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    if server.is_right(request, text) and (token := server.oracle(request, text).token) not in taken:
        return token
    return any_token(server, request, text, taken, rng)


def wrong(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    is_right = server.is_right(request, text)
    return any_token(server, request, text, [*taken, server.oracle(request, text).token] if is_right else taken, rng)


def any_token(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    return int(rng.choice([token for token in range(V) if token not in taken]))


def markers(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    """The phase opens and closes inside of drafts, whether they are accepted or not."""
    free = [token for token in OPEN + CLOSE if token not in taken]
    return int(rng.choice(free)) if free else any_token(server, request, text, taken, rng)


def mixed(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    drafter: Drafter = [right, right, right, wrong, any_token, markers][rng.integers(6)]
    return drafter(server, request, text, taken, rng)


def padding(server: "Server", request: Request, text: list[int], taken: list[int], rng: np.random.Generator) -> int:
    """As NGRAM fills its trees: siblings with the same token."""
    return mixed(server, request, text, [], rng) if rng.random() < 0.5 else 0


@dataclass
class Verified:
    """One verification: what went in, what the engine accepted and what came out of the hook."""

    trees: list[Tree]
    stock: tuple[Tensor, Tensor, Tensor]
    found: tuple[Tensor, Tensor, Tensor]
    output: Any
    texts: list[list[int]]  # of the requests before
    accepted: list[list[int]] = field(default_factory=list)


class Server:
    """Decodes a batch of requests; every outcome is compared with the oracle's."""

    def __init__(
        self,
        requests: list[Request],
        backend: Backend,
        drafter: Drafter = mixed,
        is_chain: bool = False,
        num_nodes: int = 7,
        max_depth: int = 5,
        seed: int = 0,
        model: Model | None = None,
        is_exact: bool = True,
    ) -> None:
        """is_exact: LED's path is as long as it can be, and not only right."""
        self.requests, self.drafter, self.is_chain = requests, drafter, is_chain
        self.num_nodes, self.max_depth, self.is_exact = num_nodes, max_depth, is_exact
        self.num_slots, self.has_forward_failed = max(NUM_SLOTS, 2 * len(requests)), False
        self.model = model or MODEL
        self.oracle = ORACLE if model is None else Oracle(model)
        self.rng = np.random.default_rng(seed)
        self.info = info_of(requests)
        self.runtime = fake_runtime(self.model, backend, self.num_slots)
        self.slots = torch.from_numpy(self.rng.permutation(self.num_slots)[: len(requests)])
        self.runtime.states[:] = 777  # of nobody: an id that leads nowhere
        self.runtime.states[self.slots] = torch.tensor([AUTOMATON.run(request.text) for request in requests])

    def is_right(self, request: Request, text: list[int]) -> bool:
        """The request's own text goes on like that."""
        drafts = range(len(request.text), len(text))
        return all(self.oracle(request, text[:end]).token == text[end] for end in drafts)

    def draw_tree(self, request: Request) -> Tree:
        tree, rng = Tree([-1], [request.text[-1]]), self.rng
        depths = [0]
        while len(tree.parents) < self.num_nodes:
            places = [node for node, depth in enumerate(depths) if depth + 1 < self.max_depth]
            parent = places[-1] if self.is_chain else int(rng.choice(places))
            if not self.is_chain and rng.random() < 0.1:  # a node that nothing leads to
                parent, depths = -1, [*depths, self.max_depth]
            else:
                depths.append(depths[parent] + 1)
            text = request.text + [tree.tokens[node] for node in tree.path(parent)[1:]] if parent >= 0 else request.text
            taken = [tree.tokens[node] for node in tree.children(parent)] if parent >= 0 else []
            token = self.drafter(self, request, text, taken, rng)
            tree.parents.append(parent)
            tree.tokens.append(token)
        return tree

    def eagle_sample(self, verify_input: Any, batch: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        """SGLang's edits, in its order, and its outcome: the engine's own token at every node, int32."""
        logits, info, num_nodes = output.next_token_logits, batch.sampling_info, self.num_nodes
        tables = info.acc_additive_penalties, info.acc_scaling_penalties, info.logit_bias
        if any(table is not None for table in tables):
            repeated = (None if table is None else table.repeat_interleave(num_nodes, 0) for table in tables)
            LogitEdits(*repeated).apply(logits)
        num_requests = len(self.requests)
        predict = torch.zeros(num_requests * num_nodes, dtype=torch.int32)
        accept_index = torch.full((num_requests, self.max_depth), -1, dtype=torch.int32)
        accept_lens = torch.zeros(num_requests, dtype=torch.int32)
        for b, (request, tree) in enumerate(zip(self.requests, self.trees, strict=True)):
            path = self.walk(tree, lambda node, r=request, t=tree: self.engine_token(r, t, node))
            accept_lens[b] = len(path)
            for step, node in enumerate(path):
                accept_index[b, step] = b * num_nodes + node
                predict[b * num_nodes + node] = self.engine_token(request, tree, node)
        return predict, accept_lens, accept_index

    def engine_token(self, request: Request, tree: Tree, node: int) -> int:
        return self.model.engine_tokens[self.model.row_of(self.text_at(request, tree, node))]

    def text_at(self, request: Request, tree: Tree, node: int) -> list[int]:
        """The node's own token included; any of one that nothing leads to."""
        return request.text + [tree.tokens[other] for other in tree.path(node) if other]

    def walk(self, tree: Tree, token_at: Callable[[int], int | None]) -> list[int]:
        path = [0]
        while len(path) < self.max_depth:
            following = [child for child in tree.children(path[-1]) if tree.tokens[child] == token_at(path[-1])]
            if not following:
                break
            path.append(following[0])
        return path

    def verify(self) -> Verified:
        """One verification, through the hook as SGLang calls it."""
        self.trees = [self.draw_tree(request) for request in self.requests]
        pairs = list(zip(self.requests, self.trees, strict=True))
        texts = [self.text_at(request, tree, node) for request, tree in pairs for node in range(self.num_nodes)]
        rows = torch.tensor([self.model.row_of(text) for text in texts])

        def latents(num_layers: int, num_rows: int, index: Tensor | None) -> Tensor:
            assert num_rows == len(rows) and index is None
            return self.model.latents[:num_layers, rows]

        self.runtime.capture.latents = latents
        links = [tree.links() for tree in self.trees]
        verify_input = SimpleNamespace(
            draft_token=torch.tensor([token for tree in self.trees for token in tree.tokens]),
            draft_token_num=self.num_nodes,
            positions=torch.tensor([len(text) - 1 for text in texts]),
            retrieve_next_token=torch.tensor([first for first, _ in links]),
            retrieve_next_sibling=torch.tensor([following for _, following in links]),
        )
        batch = SimpleNamespace(
            sampling_info=self.info,
            seq_lens=torch.tensor([len(request.text) - 1 for request in self.requests]),
            req_pool_indices=self.slots,
            forward_mode=SimpleNamespace(is_idle=lambda: False),
        )
        self.runtime.has_forward_failed = self.has_forward_failed
        output = SimpleNamespace(
            next_token_logits=self.model.final_logits[rows].clone(), customized_info={"another": [7] * len(pairs)}
        )
        stock: list[Any] = []

        def original(*args: Any, **kwargs: Any) -> Any:
            stock.append(self.eagle_sample(*args, **kwargs))
            return tuple(tensor.clone() for tensor in stock[0])

        before = [request.text for request in self.requests]
        found = HANDLERS[EAGLE_SAMPLE](original, verify_input, batch, output, None, None, watermark_state=None)
        assert len(stock) == 1, "the engine verifies once"
        return Verified(self.trees, stock[0], found, output, before)

    def give_out(self, verified: Verified, ends: dict[int, int] | None = None) -> None:
        """As SGLang processes the results: tokens first, then `_maybe_collect_customized_info` of each request."""
        predict, accept_lens, accept_index = (tensor.tolist() for tensor in verified.found)
        for b, request in enumerate(self.requests):
            path = accept_index[b][: accept_lens[b]]
            request.output_ids += [predict[node] for node in path]
            verified.accepted.append([predict[node] for node in path])
            request.finished_len = (ends or {}).get(b)
            seen: list[Any] = []
            HANDLERS[COLLECT](lambda self, i, req, output, s=seen: s.append(output), None, b, request, verified.output)
            assert len(seen) == 1, "another plugin's are collected"
        records.close(None, None, None, SimpleNamespace(logits_output=verified.output))

    def check(self, verified: Verified, has_failed: bool = False) -> None:
        """The outcome, whole, and the thinking states after it; before `give_out`."""
        num_nodes = self.num_nodes
        predict, accept_lens, accept_index = (tensor.tolist() for tensor in verified.found)
        stock_predict, stock_lens, stock_index = (tensor.tolist() for tensor in verified.stock)
        for found, stock in zip(verified.found, verified.stock, strict=True):
            assert (found.dtype, found.shape) == (torch.int32, stock.shape)
        for b, (request, tree) in enumerate(zip(self.requests, verified.trees, strict=True)):
            nodes = slice(b * num_nodes, (b + 1) * num_nodes)
            path, tokens = self._expected(request, tree, stock_index[b][: stock_lens[b]], b, has_failed)
            if not request.is_ours:
                assert predict[nodes] == stock_predict[nodes]
                assert accept_index[b] == stock_index[b] and accept_lens[b] == stock_lens[b]
            if not self.is_exact:
                path, tokens = path[: accept_lens[b]], tokens[: accept_lens[b]]
            rows = [b * num_nodes + node for node in path]
            assert accept_index[b] == rows + [-1] * (self.max_depth - len(rows)), (b, request, tree)
            assert accept_lens[b] == len(rows)
            assert [predict[row] for row in rows] == tokens, (b, request, tree)
            if request.is_ours:
                assert self.runtime.states[self.slots[b]] == AUTOMATON.run(request.text + tokens)
        others = [slot for slot in range(self.num_slots + 1) if slot not in self.slots.tolist()]
        assert (self.runtime.states[others] == 777).all()

    def _expected(
        self, request: Request, tree: Tree, stock: list[int], b: int, has_failed: bool
    ) -> tuple[list[int], list[int]]:
        """Nodes of the path, and the tokens that follow them."""

        def at(node: int) -> Expected:
            return self.oracle(request, self.text_at(request, tree, node))

        theirs = [row - b * self.num_nodes for row in stock]
        engine = [self.engine_token(request, tree, node) for node in theirs]
        if not request.is_ours or has_failed:
            return theirs, engine
        if not at(0).is_led:
            own = [step for step, node in enumerate(theirs) if at(node).is_led]
            end = own[0] if own else len(theirs)
            return theirs[:end], engine[:end]
        path = [0]
        while len(path) < self.max_depth:
            following = [c for c in tree.children(path[-1]) if tree.tokens[c] == at(path[-1]).token and at(c).is_led]
            if not following:
                break
            path.append(following[0])
        return path, [at(node).token for node in path]

    def check_reports(self) -> None:
        """Every token has its entry, and the counters are the sum of them."""
        flags: list[int] = []
        methods: list[int] = []
        for request in self.requests:
            visible = len(request.output_ids) if request.finished_len is None else request.finished_len
            if request.method is None:
                assert request.customized_info is None
                continue
            assert len(request.entries) == visible, request
            flags += [entry if isinstance(entry, int) else entry[0] for entry in request.entries]
            methods += [METHODS.index(request.method)] * visible
        counts = Counts(DEPTH, CPU)
        counts.correct(flags, methods, 1)
        assert self.runtime.counts.status() == counts.status()

    def serve(self, num_tokens: int) -> int:
        """Until every request has so many tokens. Returns the number of verifications."""
        num_verified = 0
        while min(len(request.output_ids) for request in self.requests) < num_tokens:
            verified = self.verify()
            self.check(verified)
            self.give_out(verified)
            num_verified += 1
        return num_verified


def bias(**tokens: float) -> Tensor:
    table = torch.zeros(V)
    for name, value in tokens.items():
        table[int(name[1:])] = value
    return table


def requests() -> list[Request]:
    """All that a request may ask for, beside those that are not LED's."""
    penalties = torch.linspace(-1.0, 0.5, V), torch.linspace(0.8, 1.3, V)
    return [
        Request(seed=11),
        Request(method=None),
        Request(seed=12, temperature=0.0),
        Request(seed=13, params={"trace": True, "phase": "all"}, prompt=[7, 8]),
        Request(seed=14, is_seeded=False),
        Request(method="none", prompt=[5, 1, 2]),
        Request(seed=15, edits=(None, None, bias(t1=3.0, t3=2.0, t7=-50.0))),
        Request(seed=16, edits=(*penalties, None), prompt=[4, 6], params={"trace": True}),
        Request(seed=17, temperature=0.7, params={"exploit": False, "min_p": 0.05, "depth": 2, "top_k": 3}),
        Request(seed=18, top_k=4, top_p=0.8, min_p=0.01, prompt=[4, 6]),
        Request(seed=19, is_seeded=False, params={"phase": "all", "normalize_layers": True}),
        Request(seed=20, temperature=0.0, prompt=[4, 6], params={"depth": 1}),
    ]
