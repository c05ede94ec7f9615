"""What a step launches: recorded from the step itself, with the arguments it gives; nothing is run.

Kernels of ours are compiled for Hopper, torch's calls counted. Tensors are as large as served, and never touched.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from benchmarks.gpu.cases import Case
from benchmarks.gpu.cost.models import Model
from benchmarks.gpu.whole_step import WholeStep
from led_sglang.integration.scheduler.ranks import CUDA_INTERVAL, RankCheck
from led_sglang.ops import Head, LedRows, RowInputs
from led_sglang.ops.fp8.rows import FORMAT, Fp8Rows
from led_sglang.ops.types import Filters, StepInputs

DEPTH = 8
VIEWS = {"view", "select", "slice", "unsqueeze", "squeeze", "expand", "transpose", "permute", "t", "alias", "detach"}
VIEWS |= {"unbind", "split", "split_with_sizes", "_unsafe_view", "_reshape_alias"}
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
# Kernels that one call of torch launches on a GPU, where it is not one (read off a profile of torch 2.x, not counted).
KERNELS_OF = {"logsumexp": 6, "stack": 2, "index_put_": 2}


@dataclass(frozen=True)
class Scenario:
    model: Model
    num_requests: int
    form: str  # coin_first, one_pass
    tp: int = 1
    is_seeded: bool = False
    head_lse: str = "full"  # or fp8: of a second pass
    nodes: int = 1  # token rows of a request: a draft tree under verification, without the engine's own acceptance

    @property
    def num_rows(self) -> int:
        return self.num_requests * self.nodes

    @property
    def name(self) -> str:
        """The form, and what is not a plain decode step."""
        fp8 = "+fp8" * (self.head_lse == "fp8")
        return self.form + fp8 + "+seeded" * self.is_seeded + f"+nodes{self.nodes}" * (self.nodes > 1)


@dataclass(frozen=True)
class KernelLaunch:
    """Of a kernel of ours."""

    kernel: str
    binary: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    is_in_graph: bool

    num_layers: int = DEPTH - 1

    @property
    def num_programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class TorchCall:
    name: str
    num_bytes: int  # read and written
    num_kernels: int
    is_in_graph: bool


@dataclass
class Plan:
    """In order. `is_in_graph`: a node of the engine's decode graph, which costs the host nothing."""

    launches: list[KernelLaunch] = field(default_factory=list)
    calls: list[TorchCall] = field(default_factory=list)
    num_allocations: int = 0
    num_collectives: int = 0


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.plan, self.is_in_graph = Plan(), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        if name in ALLOCATIONS:
            self.plan.num_allocations += not self.is_in_graph
        elif name not in VIEWS:
            self.note(name, [*_tensors(args), *_tensors((result,))])
        return result

    def note(self, name: str, moved: list[Tensor]) -> None:
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in moved)
        self.plan.calls.append(TorchCall(name, num_bytes, KERNELS_OF.get(name, 1), self.is_in_graph))


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, list | tuple) else []
    return found


def plan_of(scenario: Scenario) -> Plan:
    """All that LED adds to the engine's step of this kind."""
    recorder, run = _Recorder(), JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        binary = run(self, *args, grid=grid, warmup=True, **kwargs)
        sizes = tuple(grid(kwargs) if callable(grid) else grid)
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        whole = (*sizes, 1, 1)[:3]
        recorder.plan.launches.append(KernelLaunch(self.__name__, binary, whole, named, recorder.is_in_graph))
        return binary

    step = _Step(scenario, recorder)
    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "run", compile_only))
        stack.enter_context(recorder)
        step.run()
    return recorder.plan


class _Step:
    """One step as the server runs it, on tensors that are never touched."""

    def __init__(self, scenario: Scenario, recorder: _Recorder) -> None:
        self.scenario, self.recorder = scenario, recorder
        model, num_rows, tp = scenario.model, scenario.num_rows, scenario.tp
        weight = torch.empty(model.vocab // tp, model.hidden, dtype=torch.bfloat16)
        gather = self._all_gather if tp > 1 else None
        copy = None
        if scenario.head_lse == "fp8":
            copy = Fp8Rows(torch.empty(weight.shape, dtype=FORMAT), torch.empty(len(weight)))
        head = Head(weight, len(weight), all_gather=gather, lse_copy=copy)
        latents = torch.empty(DEPTH - 1, num_rows, model.hidden, dtype=torch.bfloat16)
        hidden, logits = torch.empty(num_rows, model.hidden, dtype=torch.bfloat16), torch.empty(num_rows, model.vocab)
        number = torch.zeros(-(-num_rows // 16) * 16 + 16, dtype=torch.float64)[:num_rows]
        inputs = StepInputs(torch.ones(num_rows, dtype=torch.bool), number, number.clone())
        case = Case(hidden, logits, latents, head, LedRows.uniform(num_rows, DEPTH), inputs, number)
        self.whole = WholeStep(case)
        self.drafts = self.whole.drafts(scenario.nodes) if scenario.nodes > 1 else None
        self.ranks = RankCheck(self._all_gather, num_rows, torch.device("cpu")) if tp > 1 else None
        if self.ranks is not None:
            self.ranks._interval = CUDA_INTERVAL
        self.probs = logits
        self.filters = Filters(number.int(), number.float(), number.float())

    def _all_gather(self, share: Tensor) -> Tensor:
        self.recorder.plan.num_collectives += 1
        return share.new_empty(self.scenario.tp, *share.shape)

    def run(self) -> None:
        whole, known_lse, tree = self.whole, None, None
        is_one_pass = self.scenario.form == "one_pass"
        if is_one_pass:
            inputs = whole.begin()
        self.recorder.is_in_graph = True
        whole.capture()
        if is_one_pass:
            known_lse = whole.head_pass()
        self.recorder.is_in_graph = False
        if self.drafts is not None:
            roots = whole.states[: self.scenario.num_requests]
            tree = whole.backend.draft_tree(self.drafts, roots, whole.tables)
        if not is_one_pass:
            inputs = whole.inputs()
        if self.ranks is not None:
            self.ranks.check(torch.stack([inputs.coin_uniform, inputs.token_uniform]))
        step = whole.decide(inputs, known_lse, tree)
        whole.backend.write_tokens(whole.meta, whole.tokens, inputs, step)
        if self.scenario.is_seeded:
            self._draw(inputs)
        whole.backend.advance(whole.meta, whole.tables, whole.states, inputs, whole.tokens)
        if self.ranks is not None:
            self.ranks.note(whole.tokens.long())
        flags = whole.backend.count(inputs, step, False, whole.method, whole.counters)
        self.recorder.note("copy_to_host", [flags])

    def _draw(self, inputs: RowInputs) -> None:
        """As `integration.scheduler.step.decision` does where every row named a seed."""
        token_ids, rows = self.whole.tokens, self.whole.meta.seed
        active, uniform = inputs.active[rows], inputs.token_uniform[rows]
        drawn, _ = self.whole.backend.sample_filtered(self.probs, rows, active, uniform, self.filters)
        kept = token_ids[rows]
        token_ids[rows] = torch.where(active, kept, drawn.to(kept.dtype))
