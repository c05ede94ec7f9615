"""A decode step as a server runs it around the engine's own: layers copied, rows' inputs, LED, tokens, counts, states.

Everything is static, so a CUDA graph holds it: that is also a proof that it can.
"""

from dataclasses import replace

import torch

from benchmarks.gpu.cases import Case
from led_sglang.ops import Noise, ThinkingAutomaton, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.rows import stats
from led_sglang.ops.rows.inputs import RowInputs, RowMeta, make_row_inputs, move_states, write_tokens
from led_sglang.ops.types import ALIGNMENT, KnownLse, LedStep


class WholeStep:
    """Of LED's rows alone: R = B."""

    def __init__(self, case: Case, backend: str = "triton") -> None:
        self.case, self.backend = case, backend
        device, num_rows, (num_layers, _, width) = case.hidden.device, len(case.hidden), case.batch_latents.shape
        max_rows = -(-num_rows // ALIGNMENT) * ALIGNMENT
        number = torch.arange(max_rows, device=device)[:num_rows]
        self.meta = RowMeta(None, number, number, number * 0, number * 0, number >= 0, None, True)
        self.slots, self.positions = number, number + 100
        automaton = ThinkingAutomaton([1], [2], case.head.num_rows)
        self.tables, self.states = automaton.tables(device), torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.counters = stats.Counters.zeros(num_layers + 1, 1, device)
        self.method, self.tokens = number * 0, number.int()
        # One layer more than depth needs, as the server keeps for the offset.
        self.outputs = [*case.batch_latents, case.batch_latents[-1]]
        self.buffer = case.hidden.new_zeros(len(self.outputs), max_rows, width)
        flags = torch.zeros(2, max_rows, dtype=torch.bool, device=device)
        self.flags, self.mask, self.served = flags, flags[0, :num_rows], flags[1, :num_rows]
        self.tau = torch.ones(max_rows, device=device)[:num_rows]
        self.lse = torch.zeros(num_layers, max_rows, device=device)[:, :num_rows]

    def two_pass(self) -> LedStep:
        """Beside the engine's head product."""
        self._capture()
        now = self._inputs()
        return self._decide(now, None)

    def one_pass(self) -> LedStep:
        """With the engine's head product."""
        case = self.case
        self.flags.zero_()
        now = self._inputs()
        coin_threshold = one_pass.coin_threshold_of(self.backend, case.hidden.device)
        rows = case.rows.activated(now)
        one_pass.fill_one_pass_mask(rows, case.uniform, coin_threshold, None, self.mask, self.tau, self.backend)
        self._capture()
        arguments = case.hidden, self._latents(), case.head, self.tau, self.mask, self.lse
        one_pass.head_pass(*arguments, self.backend)
        self.served.copy_(self.mask)
        return self._decide(now, one_pass.known_lse_of(rows, self.lse, self.served, coin_threshold))

    def _capture(self) -> None:
        """The engine clones each layer's output, and LED's buffer takes them."""
        torch.stack([output.clone() for output in self.outputs], out=self.buffer[:, : len(self.case.hidden)])

    def _latents(self) -> torch.Tensor:
        return self.buffer[:-1, : len(self.case.hidden)]

    def _inputs(self) -> RowInputs:
        now = make_row_inputs(self.meta, self.slots, self.positions, None, self.states, self.backend)
        noise = self.case.noise  # drawn all the same; the case says which rows explore
        return replace(now, coin_uniform=noise.coin_uniform, token_uniform=noise.token_uniform)

    def _decide(self, now: RowInputs, known_lse: KnownLse | None) -> LedStep:
        case, given = self.case, {} if known_lse is None else {"known_lse": known_lse}
        rows, noise = case.rows.activated(now), Noise(now.coin_uniform, now.token_uniform)
        step = led_step(case.batch_logits, self._latents(), case.head, rows, noise, backend=self.backend, **given)
        write_tokens(self.meta, self.tokens, now, step, self.backend)
        stats.pack_flags(now, step, False, self.method, self.counters, self.backend)
        move_states(self.meta, self.tables, self.states, now, self.tokens, self.backend)
        return step
