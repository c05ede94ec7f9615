"""A decode step as a server runs it around the engine's own: layers copied, rows' inputs, LED, tokens, counts, states.

Everything is static, so a CUDA graph holds it: that is also a proof that it can.
"""

from dataclasses import replace

import torch

from benchmarks.gpu.cases import Case, gpu_backend
from led_sglang.ops import KnownLse, LedStep, RowInputs, RowMeta, ThinkingAutomaton, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import ALIGNMENT, Counters


class WholeStep:
    """Of LED's rows alone: R = B."""

    def __init__(self, case: Case, backend: str = "triton") -> None:
        self.case, self.backend = case, gpu_backend(backend, case.hidden.device)
        device, num_rows, (num_layers, _, width) = case.hidden.device, len(case.hidden), case.batch_latents.shape
        max_rows = -(-num_rows // ALIGNMENT) * ALIGNMENT
        number = torch.arange(max_rows, device=device)[:num_rows]
        self.meta = RowMeta(None, number, number, number * 0, number * 0, number >= 0, None, True)
        self.slots, self.positions = number, number + 100
        automaton = ThinkingAutomaton([1], [2], case.head.num_rows)
        self.tables, self.states = automaton.tables(device), torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.counters = Counters.zeros(num_layers + 1, 1, device)
        self.method, self.tokens = number * 0, number.int()
        # One layer more than depth needs, as the server keeps for the offset.
        self.outputs = [*case.batch_latents, case.batch_latents[-1]]
        self.residual = torch.zeros_like(case.hidden)
        self.buffer = case.hidden.new_zeros(len(self.outputs), max_rows, width)
        flags = torch.zeros(2, max_rows, dtype=torch.bool, device=device)
        self.flags, self.mask, self.lse_ready = flags, flags[0, :num_rows], flags[1, :num_rows]
        self.tau = torch.ones(max_rows, device=device)[:num_rows]
        self.lse = torch.zeros(num_layers, max_rows, device=device)[:, :num_rows]

    def two_pass(self) -> LedStep:
        """Beside the engine's head product."""
        self.capture()
        return self.finish(self.inputs(), None)

    def one_pass(self) -> LedStep:
        """With the engine's head product."""
        inputs = self.begin()
        self.capture()
        return self.finish(inputs, self.head_pass())

    def begin(self) -> RowInputs:
        """Of a step in one pass, before its forward: which rows go through the head."""
        self.flags.zero_()
        inputs = self.inputs()
        mask_inputs = replace(inputs, coin_uniform=self.case.uniform)
        self.backend.one_pass_mask(self.case.rows, mask_inputs, None, self.mask, self.tau)
        return inputs

    def capture(self) -> None:
        """A layer's output and the residual stream are added into LED's buffer, as `latents.capture.Capture` does."""
        for written, output in zip(self.buffer[:, : len(self.case.hidden)], self.outputs, strict=True):
            torch.add(output, self.residual, out=written)

    def head_pass(self) -> KnownLse:
        """The engine's head product, with latent rows."""
        case = self.case
        self.backend.head_pass(case.hidden, self.latents, case.head, self.tau, self.mask, self.lse)
        self.lse_ready.copy_(self.mask)
        return one_pass.known_lse_of(case.rows, self.lse, self.lse_ready, self.backend.coin_threshold)

    @property
    def latents(self) -> torch.Tensor:
        return self.buffer[:-1, : len(self.case.hidden)]

    def inputs(self) -> RowInputs:
        inputs = self.backend.row_inputs(self.meta, self.slots, self.positions, None, self.states)
        drawn = self.case.inputs  # drawn all the same; the case says which rows explore
        return replace(inputs, coin_uniform=drawn.coin_uniform, token_uniform=drawn.token_uniform)

    def decide(self, inputs: RowInputs, known_lse: KnownLse | None, tree: DraftTree | None = None) -> LedStep:
        case = self.case
        arguments = case.batch_logits, self.latents, case.head, case.rows, inputs
        return led_step(*arguments, backend=self.backend, known_lse=known_lse, tree=tree)

    def drafts(self, num_nodes: int) -> Drafts:
        """Of a verification: so many rows of a request, one behind another."""
        ids = self.slots.new_zeros(len(self.slots) // num_nodes, num_nodes)
        links = torch.arange(1, num_nodes + 1, device=ids.device).repeat(len(ids), 1)
        return Drafts(ids, links.masked_fill(links == num_nodes, -1), ids - 1)

    def finish(self, inputs: RowInputs, known_lse: KnownLse | None) -> LedStep:
        """The decision, and what follows a token."""
        step = self.decide(inputs, known_lse)
        self.backend.write_tokens(self.meta, self.tokens, inputs, step)
        self.backend.count(inputs, step, False, self.method, self.counters)
        self.backend.advance(self.meta, self.tables, self.states, inputs, self.tokens)
        return step
